package manifest

import (
	"fmt"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/printable"
	"github.com/chaperone-proxy/chaperone/policy/learn"
)

// FromRecording makes a draft of what was recorded of a plugin: one permission for each
// rule that package policy/learn proposes. Templates for which only observation speaks are comments. notes are further
// sentences without a period.
func FromRecording(p *learn.Proposal, notes []string) *Draft {
	report := p.Report(notes)
	d := newDraft("the recording of " + report.Plugin)
	d.Name = report.Plugin
	d.Limits = fmt.Sprintf("requests: %d/1m", max(leastLimit, 2*p.Peak)) // twice the peak of one minute
	evidence := map[string]learn.Evidence{}
	for _, e := range report.Evidence {
		evidence[e.Rule] = e
	}
	databases := map[string]bool{}
	for _, c := range report.Grant.Credentials {
		databases[c.Name] = c.Inject.Database != nil
	}
	for i := range report.Grant.Rules {
		r := report.Grant.Rules[i]
		if r.Credential != "" {
			kind := configs.CredentialBearer
			if databases[r.Credential] {
				kind = configs.CredentialDatabase
			}
			r.Credential = d.credential(r.Credential, kind, "")
		}
		learned := p.Rules[i].Credentials
		e := evidence[r.ID]
		id := d.permit(r.ID, r)
		if e.Undeclared {
			d.comment(id, "UNDECLARED: no present rule names %s.", list(r.To.Hosts))
		}
		d.comment(id, "%s, at most %d in one minute.", phrase.Counted(int(min(e.Accesses, 1<<31)), "access", "accesses"), e.Peak)
		for _, w := range e.Widenings {
			d.comment(id, "%s: * for %s.", quoteAll(w.Value), printable.Text(w.Why))
		}
		for _, w := range e.Suggested {
			d.comment(id, "Not asked for: %s: %s.", quoteAll(w.Value), printable.Text(w.Why))
		}
		for _, name := range learned {
			d.comment(id, "A present rule injected the credential %s; list it under credentials if the plugin needs it.", quoteAll(name))
		}
	}
	for _, line := range report.Notes {
		if !strings.Contains(line, authz.ReasonTodo) { // the draft has its own
			d.Remarks = append(d.Remarks, line)
		}
	}
	return d
}

// leastLimit is the lowest limit of requests in a minute that is suggested.
const leastLimit = 10

// Empty returns the draft of a plugin of which nothing is known yet.
func Empty(name string) *Draft {
	d := newDraft("no source")
	d.Name = name
	return d
}
