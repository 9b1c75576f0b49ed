package governance

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/governance/risk"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// Packet is for approvers, who read it before they sign: what a plugin asks for, what it
// did, what that risks, and the exact bytes that are approved.
type Packet struct {
	Plugin   string    `json:"plugin"`
	Version  string    `json:"version"`
	Vendor   string    `json:"vendor"`
	Purpose  string    `json:"purpose"`
	At       time.Time `json:"at"`
	Artifact string    `json:"artifact"` // kind, digest and command
	Authors  []string  `json:"authors"`

	Risk  PacketRisk  `json:"risk"`
	Grant PacketGrant `json:"grant"`

	Permissions []Asked      `json:"permissions"`
	Terms       []string     `json:"terms,omitempty"`    // every other field of the manifest, and the sources of credentials
	Observed    []string     `json:"observed,omitempty"` // by the pilot, in words
	Differences []string     `json:"differences,omitempty"`
	Exemptions  []Deviation  `json:"exemptions,omitempty"`
	Blocking    []string     `json:"blocking,omitempty"`
	Findings    []string     `json:"findings,omitempty"`
	Evidence    []Proof      `json:"evidence,omitempty"`
	Problems    []Problem    `json:"problems,omitempty"`
	Comments    []Annotation `json:"comments,omitempty"`
}

// PacketRisk is the risk of a request.
type PacketRisk struct {
	Score int    `json:"score"`
	Band  string `json:"band"`
	// Contributors are the addends that count most.
	Contributors []risk.Addend `json:"contributors,omitempty"`
	// Needs are the approvals that the band demands, in words.
	Needs []string `json:"needs"`
}

// PacketGrant is the grant under review.
type PacketGrant struct {
	Digest     string    `json:"digest,omitempty"` // of Payload
	Generation int64     `json:"generation,omitempty"`
	NotBefore  time.Time `json:"notBefore,omitzero"`
	NotAfter   time.Time `json:"notAfter,omitzero"`
	Payload    string    `json:"payload,omitempty"` // the exact bytes
}

// Asked is one permission.
type Asked struct {
	ID     string `json:"id"`
	Reason string `json:"reason"`
	Access string `json:"access"`
	// Terms are the fields of the permission that the others do not show, as JSON; "" for none.
	Terms      string `json:"terms,omitempty"`
	Credential string `json:"credential,omitempty"`
	Data       string `json:"data,omitempty"`
	Optional   bool   `json:"optional,omitempty"`
	Dropped    bool   `json:"dropped,omitempty"` // left out, because nothing used it
}

// Deviation is one exemption.
type Deviation struct {
	Name          string    `json:"name"`
	From          string    `json:"from"`  // a ceiling, a condition or a finding
	Terms         string    `json:"terms"` // scope, what is allowed instead, and uses, as JSON
	Owner         string    `json:"owner"`
	Ticket        string    `json:"ticket"`
	Justification string    `json:"justification"`
	NotAfter      time.Time `json:"notAfter"`
	Controls      []string  `json:"controls,omitempty"`
}

// Proof is one piece of evidence.
type Proof struct {
	Type     string    `json:"type"`
	Signed   []string  `json:"signed"` // identities with their roles
	IssuedAt time.Time `json:"issuedAt"`
	Digest   string    `json:"digest"`
}

// Annotation is a signed comment.
type Annotation struct {
	By   string    `json:"by"`
	Role string    `json:"role"`
	Text string    `json:"text"`
	At   time.Time `json:"at"`
}

// Review returns the packet of a request.
func (r *Repository) Review(e *Evaluation) (*Packet, error) {
	q := e.Request
	m := &q.Manifest.Spec
	p := &Packet{
		Plugin: q.Plugin, Version: q.Version, Vendor: m.Vendor, Purpose: m.Purpose, At: e.now,
		Artifact: m.Artifact.Text(), Authors: q.Authors,
		Risk: PacketRisk{Score: e.Score, Band: e.Band, Needs: e.needs()}, Blocking: e.Blocking, Findings: e.Findings,
		Observed: append(e.traced(), e.Observed...), Differences: e.Differences,
	}
	if e.Risk != nil {
		const top = 5
		p.Risk.Contributors = e.Risk.Top(top)
	}
	for i := range m.Permissions {
		p.Permissions = append(p.Permissions, e.asksFor(&m.Permissions[i]))
	}
	p.Terms = q.terms()
	for i := range e.exemptions {
		p.Exemptions = append(p.Exemptions, deviation(&e.exemptions[i]))
	}
	for i := range q.Evidence {
		item := &q.Evidence[i]
		p.Evidence = append(p.Evidence, Proof{Type: item.PredicateType, Signed: signers(item.Signed), IssuedAt: item.IssuedAt, Digest: item.Digest})
	}
	for i := range e.Stages {
		p.Problems = append(p.Problems, e.Stages[i].Problems...)
	}
	for _, a := range e.Count.Annotations {
		p.Comments = append(p.Comments, Annotation{By: a.Identity, Role: a.Role, Text: a.Comment, At: a.IssuedAt})
	}
	if e.Draft != "" {
		object, err := configs.ParseObject[configs.GrantSpec](FileDraft, q.Draft)
		if err != nil {
			return nil, err
		}
		p.Grant = PacketGrant{e.Draft, object.Spec.Binding.Generation, object.Spec.NotBefore, object.Spec.NotAfter, string(q.Draft)}
	}
	return p, nil
}

// needs describes the approvals of the band.
func (e *Evaluation) needs() []string {
	out := []string{}
	for _, role := range e.band.roles {
		out = append(out, fmt.Sprintf("%d of role %s", role.Min, role.Role))
	}
	return out
}

func (e *Evaluation) asksFor(p *configs.Permission) Asked {
	out := Asked{ID: p.ID, Reason: p.Reason, Access: access(&p.Rule), Terms: rest(p, "id", "reason", "to.scheme", "to.hosts", "to.ports", "methods", "paths", "credential", "data.classes", "data.regions", "optional"), Credential: p.Credential, Optional: p.Optional, Dropped: slices.Contains(e.Dropped, p.ID)}
	var data []string
	for _, class := range p.Data.Classes {
		data = append(data, string(class))
	}
	if len(p.Data.Regions) > 0 {
		data = append(data, "in "+strings.Join(p.Data.Regions, ", "))
	}
	out.Data = strings.Join(data, ", ")
	return out
}

// rest returns the fields of a document that are not shown elsewhere, as JSON; "" for none. It
// begins with all of them, so that a field which is added to a document later is not hidden.
func rest(document any, shown ...string) string {
	data, err := json.Marshal(document)
	if err != nil {
		return err.Error()
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &fields); err != nil {
		return string(data)
	}
	inner := map[string][]string{}
	for _, field := range shown {
		if name, below, nested := strings.Cut(field, "."); nested {
			inner[name] = append(inner[name], below)
		} else {
			delete(fields, field)
		}
	}
	for name, below := range inner {
		if raw, ok := fields[name]; ok {
			if fields[name] = json.RawMessage(rest(raw, below...)); len(fields[name]) == 0 {
				delete(fields, name)
			}
		}
	}
	if len(fields) == 0 {
		return ""
	}
	out, err := json.Marshal(fields)
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// terms returns what the manifest states beside its permissions, and where credentials come from.
func (q *Request) terms() []string {
	var out []string
	fields := map[string]json.RawMessage{}
	if text := rest(q.Manifest.Spec, "version", "vendor", "purpose", "permissions", "artifact.kind", "artifact.digest"); text != "" {
		if err := json.Unmarshal([]byte(text), &fields); err != nil {
			out = append(out, text)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		out = append(out, name+": "+string(fields[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(q.credentials)) {
		out = append(out, "source of credential "+name+": "+rest(q.credentials[name]))
	}
	return out
}

// access describes the accesses of a rule on one line.
func access(rule *authz.Rule) string {
	scheme := cmp.Or(string(rule.To.Scheme), string(authz.SchemeHTTPS))
	text := strings.Join(rule.Methods, ",")
	if text != "" {
		text += " "
	}
	text += scheme + "://" + strings.Join(rule.To.Hosts, "|")
	for i, port := range rule.To.Ports {
		text += map[bool]string{true: ":", false: ","}[i == 0] + strconv.Itoa(int(port))
	}
	if len(rule.Paths) > 0 {
		text += " " + strings.Join(rule.Paths, " ")
	}
	return text
}

// traced describes what the newest pilot observed.
func (e *Evaluation) traced() []string {
	var newest *evidence.Item
	for i := range e.items {
		item := &e.items[i]
		if item.PredicateType == pilot.TraceType && (newest == nil || item.ObservedAt.After(newest.ObservedAt)) {
			newest = item
		}
	}
	if newest == nil {
		return nil
	}
	t, err := pilot.ParseTrace(newest.Predicate)
	if err != nil {
		return []string{err.Error()}
	}
	out := []string{fmt.Sprintf("pilot from %s to %s: %d accesses, %s", stamp(t.Started), stamp(t.Ended), t.Coverage.Accesses, t.Verdict)}
	for _, use := range t.Declared {
		out = append(out, fmt.Sprintf("permission %s: used %d times", use.Permission, use.Uses))
	}
	for _, u := range t.Undeclared {
		out = append(out, fmt.Sprintf("not declared: %s %s:%d, %d times (%s)", u.Method, u.Host, u.Port, u.Count, u.Reason))
	}
	return out
}

func deviation(x *Exemption) Deviation {
	out := Deviation{Name: x.Name, From: x.GuardrailRule, Terms: rest(x.Spec, "guardrailRule", "owner", "ticket", "justification", "notAfter", "compensatingControls"), Owner: x.Owner, Ticket: x.Ticket, Justification: x.Spec.Justification, NotAfter: x.NotAfter}
	for _, control := range x.Spec.CompensatingControls {
		text := control.Description
		if control.Rule != "" {
			text = strings.TrimSpace("rule " + control.Rule + " with limits " + control.Limits.String() + " " + control.Description)
		}
		out.Controls = append(out.Controls, text)
	}
	return out
}

func signers(all []dsse.Signed) []string {
	var out []string
	for _, s := range all {
		out = append(out, s.Identity+" ("+s.Role+")")
	}
	return out
}
