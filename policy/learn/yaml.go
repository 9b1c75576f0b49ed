package learn

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// writer writes YAML of which every text from a log is quoted or escaped.
type writer struct{ b strings.Builder }

// line writes one line. Its arguments are numbers, constants, or texts from quote.
func (w *writer) line(format string, args ...any) {
	w.b.WriteString(printable.Text(fmt.Sprintf(format, args...)))
	w.b.WriteByte('\n')
}

// quote returns a text as YAML and Go read it, in ASCII on one line.
func quote(s string) string { return strconv.QuoteToASCII(s) }

// list returns a flow sequence.
func list(texts []string) string {
	words := make([]string, len(texts))
	for i, t := range texts {
		words[i] = quote(t)
	}
	return "[" + strings.Join(words, ", ") + "]"
}

// YAML writes the proposal as a PluginGrant, with its evidence as comments. notes are
// further lines of the comment in front, as sentences without a period.
func (p *Proposal) YAML(to io.Writer, notes ...string) error {
	w := &writer{}
	for _, line := range append(p.Summary(), notes...) {
		w.line("# %s.", printable.Text(line))
	}
	w.line("apiVersion: chaperone.dev/v1alpha1")
	w.line("kind: PluginGrant")
	w.line("metadata: {name: %s}", quote(p.Terms.Name))
	w.line("spec:")
	w.line("  plugin: %s", quote(p.Terms.Plugin))
	w.line("  notAfter: %s", p.Terms.NotAfter.UTC().Format(time.RFC3339))
	w.line("  # limits: {requests: %d/1m} # twice the peak of %s in one minute", suggestedLimit(p.Peak), phrase.Counted(int(p.Peak), "access", "accesses"))
	w.line("  rules:")
	for i := range p.Rules {
		w.rule(p, &p.Rules[i])
	}
	w.credentials(p.Grant(authz.ReasonTodo).Credentials)
	_, err := io.WriteString(to, w.b.String())
	return err
}

// Summary returns what the proposal was learned from and what it lacks, as sentences
// without a period.
func (p *Proposal) Summary() []string {
	c := p.Calendar
	out := []string{
		fmt.Sprintf("Learned from %d accesses of plugin %s, %s to %s", p.Estimate.Accesses, p.Terms.Plugin, c.First.UTC().Format(time.RFC3339), c.Last.UTC().Format(time.RFC3339)),
		"Before it loads, replace each TODO by why the plugin needs the access",
		"Not seen yet: " + p.Estimate.String(),
	}
	if p.Estimate.Known {
		out = append(out, "The estimate holds for a plugin that goes on as it was, and not for a hostile one: a plugin can behave well while it is observed")
	}
	if gaps := c.Gaps(); len(gaps) > 0 {
		out = append(out, "The calendar lacks "+strings.Join(gaps, "; "))
	}
	if n := p.Left.Ungrantable; n > 0 {
		out = append(out, fmt.Sprintf("Left out: %d accesses that no rule can grant literally (TRACE, or * in the path)", n))
	}
	if n := p.Left.Bounded; n > 0 {
		out = append(out, fmt.Sprintf("Left out: %d accesses to more paths or hosts than are listed; the templates in comments are for them", n))
	}
	for _, dropped := range p.Dropped {
		out = append(out, "Left out, as no rule may state it: "+dropped)
	}
	return out
}

// suggestedLimit returns twice a peak, and at least 10.
func suggestedLimit(peak uint64) uint64 { return max(10, 2*peak) }

func (w *writer) rule(p *Proposal, r *Rule) {
	if r.Undeclared {
		w.line("  # UNDECLARED: no present rule names %s", list(r.To.Hosts))
	}
	w.line("  - id: %s # %s", quote(r.ID), phrase.Counted(int(r.Count), "access", "accesses"))
	w.line("    reason: %s", authz.ReasonTodo)
	w.line("    to: {%s}", destination(&r.Rule))
	if r.wildcard != "" {
		w.line("    # %d of %d hosts are below one name: to grant all below it, put %s in place of them", len(r.below), len(r.To.Hosts), quote(r.wildcard))
	}
	if len(r.Methods) > 0 {
		w.line("    methods: %s", list(r.Methods))
		w.paths(r)
	}
	w.content(r)
	if !r.Data.IsZero() {
		w.line("    data: %s", r.Data)
	}
	if len(r.Upgrades) > 0 {
		w.line("    upgrades: %s", list(r.Upgrades))
	}
	if r.EncodedSlash != "" {
		w.line("    encodedSlash: %s", r.EncodedSlash)
	}
	if r.To.Scheme.Database() {
		spec := r.Rule
		p.credentialFor(&spec)
		w.line("    credential: %s", quote(spec.Credential))
		w.line("    # limits: {requests: %d/1m} # the peak was %d in one minute", suggestedLimit(r.Peak), r.Peak)
		return
	}
	for _, name := range r.Credentials {
		w.line("    # credential: %s # was injected by a present rule; it is not learned", quote(name))
	}
	if r.credential != "" && !slices.Contains(r.Credentials, r.credential) {
		w.line("    # credential: %s # of a present rule for this host", quote(r.credential))
	}
	w.line("    # limits: {requests: %d/1m} # the peak was %d in one minute", suggestedLimit(r.Peak), r.Peak)
}

// content writes what a rule grants of statements.
func (w *writer) content(r *Rule) {
	if !r.To.Scheme.Database() {
		return
	}
	var databases []string
	for _, d := range r.Databases {
		databases = append(databases, string(d))
	}
	w.line("    databases: %s", list(databases))
	if s := r.Statements; s != nil {
		w.line("    statements:")
		w.line("      verbs: %s", list(s.Verbs))
		w.line("      tables: %s", list(s.Tables))
		w.line("      functions: %s", list(s.Functions))
	} else {
		w.line("    commands: %s", list(r.Commands))
	}
	for _, f := range []struct {
		name   string
		values []string
	}{{"keys", r.Keys}, {"channels", r.Channels}} {
		if len(f.values)+len(r.evidence[f.name]) == 0 {
			continue
		}
		w.line("    %s:", f.name)
		for _, v := range f.values {
			evidence := ""
			if s, ok := r.stars[v]; ok {
				evidence = " # * for " + s.String()
			}
			w.line("    - %s%s", quote(v), evidence)
		}
		for _, s := range r.evidence[f.name] {
			w.line("    # - %s # %s", quote(s.text), s.String())
		}
	}
	if len(r.opaque) > 0 {
		w.line("    # opaque: allow # only observation: %s; the role's rights alone then hold", list(r.opaque))
	}
}

// credentials writes those of rules for databases.
func (w *writer) credentials(all []authz.CredentialSpec) {
	if len(all) == 0 {
		return
	}
	w.line("  credentials:")
	for _, c := range all {
		login := ""
		if d := c.Inject.Database; d != nil && *d != (authz.DatabaseLogin{}) {
			var parts []string
			if d.Username != "" {
				parts = append(parts, "username: "+quote(d.Username))
			}
			if d.Password != "" {
				parts = append(parts, "password: "+quote(d.Password))
			}
			login = strings.Join(parts, ", ")
		}
		w.line("  - {name: %s, vault: {path: %s}, inject: {database: {%s}}}", quote(c.Name), quote(c.Vault.Path), login)
	}
}

func destination(r *authz.Rule) string {
	var parts []string
	if r.To.Scheme != "" {
		parts = append(parts, "scheme: "+string(r.To.Scheme))
	}
	parts = append(parts, "hosts: "+list(r.To.Hosts))
	if len(r.To.Ports) > 0 {
		ports := make([]string, len(r.To.Ports))
		for i, port := range r.To.Ports {
			ports[i] = strconv.Itoa(int(port))
		}
		parts = append(parts, "ports: ["+strings.Join(ports, ", ")+"]")
	}
	if len(r.To.Addresses) > 0 {
		addresses := make([]string, len(r.To.Addresses))
		for i, a := range r.To.Addresses {
			addresses[i] = a.String()
		}
		parts = append(parts, "addresses: "+list(addresses))
	}
	var tls []string
	if r.To.TLS.Min != "" {
		tls = append(tls, "min: "+quote(r.To.TLS.Min))
	}
	if r.To.TLS.CAFile != "" {
		tls = append(tls, "caFile: "+quote(r.To.TLS.CAFile))
	}
	if len(tls) > 0 {
		parts = append(parts, "tls: {"+strings.Join(tls, ", ")+"}")
	}
	return strings.Join(parts, ", ")
}

func (w *writer) paths(r *Rule) {
	w.line("    paths:")
	for _, p := range r.patterns {
		evidence := ""
		for _, s := range p.stars {
			evidence += "; * for " + s.String()
		}
		if evidence != "" {
			evidence = " # " + strings.TrimPrefix(evidence, "; ")
		}
		w.line("    - %s%s", quote(p.text), evidence)
	}
	for _, s := range r.suggested {
		w.line("    # - %s # %s", quote(s.text), s.String())
	}
}

// String returns what the wildcard stands for.
func (s star) String() string {
	var names []string
	for _, class := range s.classes {
		names = append(names, class.String())
	}
	return strings.Join(names, " and ") + samples(s.samples)
}

// String returns why the pattern is suggested and not granted.
func (s suggestion) String() string {
	switch {
	case s.depths > 0:
		return fmt.Sprintf("only observation: %d paths of %d depths%s", s.values, s.depths, samples(s.samples))
	case s.ids:
		return fmt.Sprintf("too few ids to be sure%s", samples(s.samples))
	}
	return fmt.Sprintf("only observation: %d or more values%s", s.values, samples(s.samples))
}

// samples lists samples as a part of a comment.
func samples(texts []string) string {
	words := make([]string, len(texts))
	for i, t := range texts {
		words[i] = quote(printable.Clip(t, maxSample))
	}
	if len(words) == 0 {
		return ""
	}
	return ", as in " + strings.Join(words, ", ")
}
