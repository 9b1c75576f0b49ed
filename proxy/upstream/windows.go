package upstream

import (
	"context"
	"errors"
	"net"
	"net/http"
)

// Windows of HTTP/2 towards upstreams, in bytes (RFC 9113, section 6.9). A window
// is what may be on its way, and so the throughput of a long pipe: at 100 ms
// 4 MiB are 40 MiB/s. It is memory only where the plugin does not take what comes,
// and a connection's is the most that it can hold then; so is a connection's much
// larger than a stream's, that a stream which nobody takes leaves the others room.
const (
	wideStream       = 4 << 20
	wideConnection   = 16 << 20
	narrowStream     = 512 << 10
	narrowConnection = 1 << 20
	// wideShare is what connections with wide windows may take of the budget, so
	// that two have them at a time. An upstream that allows one stream at a time has
	// a connection for each request.
	wideShare = 2*wideConnection + 1<<20
)

// Windows of HTTP/2 where bodies have no latency to bridge, in bytes: of one connection
// of the plugin, and of each of its streams; and towards upstreams whose answers a
// limit slows down. They bound memory where nothing takes the bodies, and leave room
// for the other streams where one is taken slowly.
const (
	ConnectionWindow = 1 << 20
	StreamWindow     = 64 << 10
)

// errNoWideWindow is a connection that may not have wide windows, because as many have
// them as may. The request has not been sent.
var errNoWideWindow = errors.New("the limit of connections with wide windows is reached")

// dialContext is the type of http.Transport.DialContext.
type dialContext func(ctx context.Context, network, address string) (net.Conn, error)

// Send sends the request that next returns, over a connection with wide windows
// where there may be one.
func (p *Pool) Send(next func() *http.Request) (*http.Response, error) {
	response, err := p.transport.RoundTrip(next())
	if p.narrow != nil && errors.Is(err, errNoWideWindow) {
		return p.narrow.RoundTrip(next())
	}
	return response, err
}
