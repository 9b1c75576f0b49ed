package extauthz

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

// transport secures connections on the server's side. The kind of a connection
// decides whether its caller may receive credentials.
type transport struct {
	credentials.TransportCredentials // for TCP

	callers     []string
	groupAccess bool // the unix socket is open to a group
}

func newTransport(cfg Config) transport {
	t := transport{insecure.NewCredentials(), cfg.Callers, cfg.Group != ""}
	if cfg.TLS != nil {
		t.TransportCredentials = credentials.NewTLS(cfg.TLS)
	}
	return t
}

// caller describes the peer of a connection.
type caller struct {
	credentials.CommonAuthInfo

	// Trusted is true if the caller may receive credentials.
	Trusted bool
}

// AuthType names the kind of AuthInfo (credentials.AuthInfo).
func (caller) AuthType() string { return "chaperone" }

// trusted reports whether a connection's caller may receive credentials.
func trusted(info credentials.AuthInfo) bool {
	c, ok := info.(caller)
	return ok && c.Trusted
}

// ServerHandshake identifies the peer.
func (t transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if local, ok := unixConn(conn); ok {
		own, err := t.ownUser(local)
		if err != nil {
			return nil, nil, err
		}
		return &trailersOnlyConn{Conn: conn}, caller{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, own}, nil
	}
	secured, info, err := t.TransportCredentials.ServerHandshake(conn)
	if err != nil {
		return nil, nil, err
	}
	tlsInfo, ok := info.(credentials.TLSInfo)
	if !ok {
		return &trailersOnlyConn{Conn: secured}, caller{}, nil
	}
	return &trailersOnlyConn{Conn: secured}, caller{tlsInfo.CommonAuthInfo, t.verified(tlsInfo)}, nil
}

// Clone returns a copy (credentials.TransportCredentials).
func (t transport) Clone() credentials.TransportCredentials {
	t.TransportCredentials = t.TransportCredentials.Clone()
	return t
}

// ClientHandshake returns an error: the server has no client side.
func (transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("handshake: a server's credentials")
}

// verified reports whether the caller presented a verified certificate whose name may
// receive credentials.
func (t transport) verified(info credentials.TLSInfo) bool {
	if len(info.State.VerifiedChains) == 0 {
		return false
	}
	if len(t.callers) == 0 {
		return true
	}
	leaf := info.State.VerifiedChains[0][0]
	names := slices.Clone(leaf.DNSNames)
	for _, id := range leaf.URIs {
		names = append(names, id.String())
	}
	return slices.ContainsFunc(names, func(name string) bool { return slices.Contains(t.callers, name) })
}

// ownUser reports whether the peer of a Unix socket is root or the sidecar's own
// user. The socket's mode ensures the same, unless another process has changed it. A
// socket that is open to a group relies on its mode alone: the groups of a peer in
// another user namespace are not visible.
func (t transport) ownUser(conn *net.UnixConn) (bool, error) {
	if t.groupAccess {
		return true, nil
	}
	peer, err := unixsock.PeerOf(conn)
	if err != nil {
		return false, err
	}
	return peer.UID == 0 || peer.UID == os.Geteuid(), nil
}

// unixConn returns conn as a Unix connection, if it is one.
func unixConn(conn net.Conn) (*net.UnixConn, bool) {
	if b, ok := conn.(*limitConn); ok {
		conn = b.Conn
	}
	unix, ok := conn.(*net.UnixConn)
	return unix, ok
}
