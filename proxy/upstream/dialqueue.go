package upstream

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

const (
	// maxDialling is how many connections to one upstream are made at a time while it may
	// speak HTTP/2. One serves all requests; the second is made in case the first fails.
	maxDialling = 2
	// settling is how long net/http may take to give a new connection to the requests that
	// wait for one.
	settling = 20 * time.Millisecond
)

// errServed ends a dial whose request has another connection: net/http does not wait for it.
var errServed = errors.New("the request has another connection")

// dialQueue has the requests of a burst wait for the first connections to their upstream.
// net/http dials for each of them, and over HTTP/2 closes all connections but one: until
// then each would hold the memory of its windows, for which there is no room in a burst.
type dialQueue struct {
	mu sync.Mutex
	of map[string]*dialling // by address, while anything is dialled
}

// dialling is the connections to one address that are being made.
type dialling struct {
	turns chan struct{} // holds an element for each
	users int           // with those that wait
	made  int           // how many were made
	last  error         // of the last one, nil if it was made
}

// join returns the connections to an address, and how many were made. [dialQueue.leave]
// follows.
func (q *dialQueue) join(address string) (d *dialling, made int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if d = q.of[address]; d == nil {
		if q.of == nil {
			q.of = make(map[string]*dialling)
		}
		d = &dialling{turns: make(chan struct{}, maxDialling)}
		q.of[address] = d
	}
	d.users++
	return d, d.made
}

func (q *dialQueue) leave(address string, d *dialling) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if d.users--; d.users == 0 {
		delete(q.of, address)
	}
}

// note notes what became of a connection.
func (q *dialQueue) note(d *dialling, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if d.last = err; err == nil {
		d.made++
	}
}

// state returns how many connections were made, and why the last one was not.
func (q *dialQueue) state(d *dialling) (made int, last error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return d.made, d.last
}

// dialer returns dial for one request of a burst after the other, unless the request no longer
// needs it, or free reports that requests to the address have no turns: the upstream does not
// speak HTTP/2.
func (q *dialQueue) dialer(dial dialContext, free func(address string) bool) dialContext {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		access, ok := ctx.Value(accessKey{}).(*accessContext)
		if !ok || free(address) {
			return dial(ctx, network, address)
		}
		d, made := q.join(address)
		defer q.leave(address, d)
		began, connections := time.Now(), access.connections.Load()
		if err := d.turn(ctx, access); err != nil {
			return nil, err
		}
		if free(address) {
			<-d.turns
			return dial(ctx, network, address)
		}
		defer func() { <-d.turns }()
		served := func() bool { return access.connections.Load() != connections }
		now, last := q.state(d)
		if now > made && !served() {
			time.Sleep(settling)
		}
		switch {
		case served():
			return nil, errServed
		case last != nil && time.Since(began) >= handshakeTimeout: // this one would fail too
			return nil, last
		}
		conn, err := dial(ctx, network, address)
		q.note(d, err)
		return conn, err
	}
}

// turn waits for the turn of a request, as long as it needs a connection.
func (d *dialling) turn(ctx context.Context, access *accessContext) error {
	select {
	case d.turns <- struct{}{}:
		return nil
	case <-access.Done():
		return context.Cause(access)
	case <-ctx.Done(): // net/http does not need the connection
		return context.Cause(ctx)
	}
}
