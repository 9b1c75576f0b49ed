package redis

import (
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/resp"
)

// selectDatabase sends SELECT and waits for its answer: the facts of what follows have the
// database that the server has selected.
func (r *relay) selectDatabase(from, to, number int) error {
	answered := make(chan answer, 1)
	r.send(from, to)
	r.mark(marker{answer: answered}, okName)
	if err := r.flush(); err != nil {
		return err
	}
	select {
	case a := <-answered:
		switch {
		case a.ok:
			r.requests.current = number
		case !a.failed:
			r.s.Cut(authz.StatementUnreadable, "the server does not answer SELECT as Redis does")
			return errEnding
		}
		return nil
	case <-r.answers.done:
		return errEnding
	case <-r.s.Context().Done():
		return errEnding
	}
}

// hello sends HELLO without its AUTH, which was answered by the kernel: the connection is
// logged in already, and the plugin has no password.
func (r *relay) hello(c command) {
	q := &r.requests
	var request resp.Request
	raw := q.in[c.from:c.to]
	_, _ = request.Scan(raw) // it is complete
	args := request.Args(raw)
	kept := args[:min(len(args), 2)]
	for i := 2; i < len(args); i++ {
		switch {
		case strings.EqualFold(string(args[i]), "AUTH") && i+2 < len(args):
			i += 2
		case strings.EqualFold(string(args[i]), "SETNAME") && i+1 < len(args):
			kept = append(slices.Clip(kept), args[i], args[i+1])
			i++
		default: // not an option of Redis 7: it may be a credential
			r.refuse(r.s.Refuse(authz.StatementUnreadable, "HELLO has an option that is not one of Redis 7"))
			return
		}
	}
	r.sent.Add(1)
	if len(kept) == len(args) {
		r.send(c.from, c.to)
		return
	}
	q.out = appendRequest(append(q.out, q.in[q.from:q.to]...), kept...)
	q.from, q.to = 0, 0
}
