package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// refusalPrinter prints refusals for the plugin's author. Equal ones are
// printed once in a while, so that a loop does not fill the terminal.
type refusalPrinter struct {
	mu    sync.Mutex
	w     io.Writer
	now   func() time.Time
	shown map[refusalKey]*shown
}

type refusalKey struct {
	reason              authz.Reason
	method, url, plugin string
}

type shown struct {
	at     time.Time
	hidden int
}

const (
	refusalQuiet = 10 * time.Second // between two printings of one refusal
	refusalKinds = 1000             // different refusals remembered; then all is forgotten
)

func newRefusalPrinter(w io.Writer) *refusalPrinter {
	return &refusalPrinter{w: w, now: time.Now, shown: map[refusalKey]*shown{}}
}

// print shows a refusal and its remedy.
func (p *refusalPrinter) print(r authz.Refusal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := refusalKey{r.Reason, r.Method, r.URL, r.Plugin}
	now := p.now()
	again := ""
	if s := p.shown[key]; s != nil {
		if now.Sub(s.at) < refusalQuiet {
			s.hidden++
			return
		}
		if s.hidden > 0 {
			again = fmt.Sprintf(" (%d more since)", s.hidden)
		}
	}
	if len(p.shown) >= refusalKinds {
		clear(p.shown)
	}
	p.shown[key] = &shown{at: now}
	what := r.URL
	if r.Method != "" {
		what = r.Method + " " + what
	}
	fmt.Fprintf(p.w, "chaperone: refused %s: %s: %s%s\n", what, r.Reason, r.Detail, again)
	switch {
	case r.Remedy != "" && r.Decision != "":
		fmt.Fprintf(p.w, "chaperone:   %s (decision %s)\n", r.Remedy, r.Decision)
	case r.Remedy != "":
		fmt.Fprintf(p.w, "chaperone:   %s\n", r.Remedy)
	}
}
