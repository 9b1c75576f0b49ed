package proxy

import "sync"

// attribution says which rule the bytes on a plugin's socket are for. A nil
// attribution says nothing.
type attribution struct {
	cookie uint64
	say    func(cookie uint64, grant, rule string)

	mu      sync.Mutex // held while saying, so that the last word is the latest
	running int        // accesses that have begun and not ended
}

// attributionOf returns the attribution of a peer's socket, nil where nobody
// is told or the socket is not known.
func (p *Proxy) attributionOf(peer Peer) *attribution {
	if p.cfg.Attribute == nil || peer.Cookie == 0 {
		return nil
	}
	return &attribution{cookie: peer.Cookie, say: p.cfg.Attribute}
}

// begin attributes the socket to the rule of an access that begins.
func (a *attribution) begin(grant, rule string) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running++
	a.say(a.cookie, grant, rule)
}

// end ends what began. The rule stays: what is still on its way belongs to it,
// and so, most likely, does the head of the next request.
func (a *attribution) end() {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running--
}

// refused attributes the socket to no rule, unless something else still runs.
func (a *attribution) refused() {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running == 0 {
		a.say(a.cookie, "", "")
	}
}
