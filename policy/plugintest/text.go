package plugintest

import (
	"cmp"
	"net/netip"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

func comparePlaces(a, b Place) int {
	return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
}

// field is one field of an expectation.
type field struct{ name, value string }

// asIs returns the fields that state the decision o as it is, beside those that select the
// request.
func (e *expectation) asIs(o outcome) []field {
	if !o.reason.Allowed() {
		return []field{{"deny", e.text}, {"reason", o.reason.String()}}
	}
	out := []field{{"allow", e.text}, {"rule", phrase.Rule(o.decision.Grant, o.decision.Rule)}, {"credential", o.decision.Credential}}
	if o.reason != authz.Granted {
		out = append(out, field{"reason", o.reason.String()})
	}
	return out
}

// flow writes fields as a mapping on one line. A field without a value is left out, but
// for a credential, where it stands for none.
func flow(fields []field) string {
	var out []string
	for _, f := range fields {
		if f.value != "" || f.name == "credential" {
			out = append(out, f.name+": "+scalar(f.value))
		}
	}
	return "{" + strings.Join(out, ", ") + "}"
}

// scalar writes a text as a value inside a flow mapping, in quotes unless it cannot be
// read as anything else.
func scalar(s string) string {
	safe := s != "" && strings.IndexFunc(s, func(r rune) bool {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !alnum && !strings.ContainsRune(" -_./:%?=~+$", r)
	}) < 0 && !strings.Contains(s, ": ") && !strings.HasSuffix(s, ":") && s == strings.TrimSpace(s)
	switch strings.ToLower(s) {
	case "true", "false", "null", "yes", "no", "on", "off":
		safe = false
	}
	_, noTime := time.Parse(time.RFC3339Nano, s)
	addr, err := netip.ParseAddr(s)
	letter := safe && strings.ContainsAny(s[:1], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	if letter || noTime == nil || err == nil && addr.Is4() {
		return s
	}
	return quote(s)
}

// ask returns an expectation that asks the request of a finding.
func (s *Suite) ask(f prove.Finding) *expectation {
	w := policy.Text(f.Request)
	e := &expectation{suite: s, form: "deny", text: w.String(), at: f.At, door: f.Door, request: f.Request}
	e.Upgrade, e.Address = w.Upgrade, f.Address
	if w.Method == "CONNECT" {
		e.text = w.URL
	}
	if f.Door.Name != "proxy" {
		e.Door = configs.TestDoor(f.Door.Name)
	}
	if !f.At.Equal(s.at) {
		e.At = f.At
	}
	return e
}

// selectors returns the fields that select the request, beside its text.
func (e *expectation) selectors() (out []field) {
	out = append(out, field{"upgrade", e.Upgrade})
	if e.Address.IsValid() {
		out = append(out, field{"address", e.Address.String()})
	}
	out = append(out, field{"door", string(e.Door)})
	if !e.At.IsZero() {
		out = append(out, field{"at", e.At.UTC().Format(time.RFC3339Nano)})
	}
	return out
}
