package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// refusalPrinter prints refusals for the plugin's author. Equal ones are
// printed once in a while, so that a loop does not fill the terminal.
type refusalPrinter struct {
	mu    sync.Mutex
	w     io.Writer
	now   func() time.Time
	shown map[any]*shown

	second  time.Time // since when printed counts
	printed int
	unshown int // refusals beyond what is printed in a second
}

type refusalKey struct {
	reason              authz.Reason
	method, url, plugin string
	statement           string // the detail of a database's one: all have one URL
}

type shown struct {
	at     time.Time
	hidden int
}

const (
	refusalQuiet = 10 * time.Second // between two printings of one refusal
	refusalKinds = 1000             // different refusals remembered; then all is forgotten
	refusalRate  = 20               // different refusals printed in a second: what is tried is the plugin's to choose
)

func newRefusalPrinter(w io.Writer) *refusalPrinter {
	return &refusalPrinter{w: w, now: time.Now, shown: map[any]*shown{}}
}

// mayPrint counts the lines of a second, and prints how many were suppressed.
func (p *refusalPrinter) mayPrint(now time.Time) bool {
	if now.Sub(p.second) >= time.Second {
		if p.unshown > 0 {
			say(p.w, "chaperone: %d more were refused; chaperone audit query shows them", p.unshown)
		}
		p.second, p.printed, p.unshown = now, 0, 0
	}
	if p.printed >= refusalRate {
		p.unshown++
		return false
	}
	p.printed++
	return true
}

// print shows a refusal and its remedy.
func (p *refusalPrinter) print(r authz.Refusal) {
	what := r.URL
	if r.Method != "" {
		what = r.Method + " " + what
	}
	remedy := r.Remedy
	if remedy != "" && r.Decision != "" {
		remedy += " (decision " + r.Decision + ")"
	}
	key := refusalKey{r.Reason, r.Method, r.URL, r.Plugin, ""}
	if r.Reason == authz.StatementNotGranted {
		key.statement = r.Detail
	}
	p.once(key, fmt.Sprintf("refused %s: %s: %s", what, r.Reason, r.Detail), remedy)
}

// event shows what went wrong with a connection and its remedy.
func (p *refusalPrinter) event(what, remedy string) { p.once(what, what, remedy) }

// once shows what has happened and its remedy, equal ones once in a while.
func (p *refusalPrinter) once(key any, what, remedy string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if s := p.shown[key]; s != nil {
		if now.Sub(s.at) < refusalQuiet {
			s.hidden++
			return
		}
		if s.hidden > 0 {
			what += fmt.Sprintf(" (%d more since)", s.hidden)
		}
	}
	if !p.mayPrint(now) {
		return
	}
	if len(p.shown) >= refusalKinds {
		clear(p.shown)
	}
	p.shown[key] = &shown{at: now}
	p.lines(what, remedy)
}

// act shows what a limit did to the plugin, and its remedy.
func (p *refusalPrinter) act(what, remedy string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines(what, remedy)
}

// lines prints what happened and a remedy in one write, so that neither is
// dropped alone. The names in them may be the plugin's choice: no character of
// theirs controls a terminal.
func (p *refusalPrinter) lines(what, remedy string) {
	text := "chaperone: " + phrase.OneLine(what) + "\n"
	if remedy != "" {
		text += "chaperone:   " + phrase.OneLine(remedy) + "\n"
	}
	_, _ = io.WriteString(p.w, text) // there is nowhere to report it
}
