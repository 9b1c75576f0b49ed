package manifest

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// Draft is a manifest made from something else: what that states, and what it leaves open.
type Draft struct {
	// Name is the plugin's.
	Name string
	Spec configs.PluginManifest
	// Source is where it comes from, as in server.json.
	Source string
	// Todos are open points, which a person has to state or decide. Spec asks for nothing of them.
	Todos []Todo
	// Comments are comments on each permission of Spec, by its id, on lines without the #.
	Comments map[string][]string
	// Remarks are what is to be known of the source, as sentences without a period.
	Remarks []string
	// Limits is a suggestion for the limits of the plugin, as the inside of a flow mapping; "" without one.
	Limits string

	taken map[string]bool // ids of permissions
	next  map[string]int  // the last number behind an id that repeats
}

// Todo is one thing that a draft leaves open.
type Todo struct {
	// Field is the field of the source, as in permissions.scopes[0].
	Field string `json:"field"`
	// Line and Column are its place, 1-based; 0 without one.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
	// Message is what is open, and what to write.
	Message string `json:"message"`
}

// maxTodos bounds the open points of a draft.
const maxTodos = 1000

// todo notes that a value of the source is too little for a permission.
func (d *Draft) todo(n *node, format string, args ...any) {
	if len(d.Todos) < maxTodos {
		d.Todos = append(d.Todos, Todo{withoutSecret(printable.Clip(n.path(), maxText)), n.line, n.column, withoutSecret(fmt.Sprintf(format, args...))})
	}
}

// comment adds a line of comment above a permission.
func (d *Draft) comment(id, format string, args ...any) {
	if d.Comments == nil {
		d.Comments = map[string][]string{}
	}
	d.Comments[id] = append(d.Comments[id], fmt.Sprintf(format, args...))
}

// Todo as the value of a field means that a person has to write it. No manifest with it passes a check.
const todoText = authz.ReasonTodo

// isTodo reports whether a text is still to be written.
func isTodo(s string) bool {
	return strings.EqualFold(strings.TrimRight(strings.TrimSpace(s), ".:!"), todoText)
}

// noDigest stands for a digest that is not known yet.
const noDigest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

// newDraft returns a draft in which everything that a source may not state is to be written.
func newDraft(source string) *Draft {
	return &Draft{Source: source, Spec: configs.PluginManifest{
		Version: "0.1.0", Vendor: todoText, Purpose: todoText,
		Artifact: configs.Artifact{Artifact: grantcheck.Artifact{Kind: grantcheck.ArtifactFile, Digest: noDigest}},
	}}
}

// name makes a text a name: lower-case letters and digits with dashes between them; "" if
// none are in it.
func name(text string) string {
	var b strings.Builder
	lower := false // the letter before was in lower case, as the second of apiToken
	for _, r := range text {
		if lower && r >= 'A' && r <= 'Z' {
			b.WriteByte('-')
		}
		lower = r >= 'a' && r <= 'z'
		switch r = unicode.ToLower(r); {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		const most = 60
		if b.Len() >= most {
			break
		}
	}
	return strings.Trim(b.String(), "-")
}

// maxPermissions bounds the permissions of a draft.
const maxPermissions = 1000

// permit adds a permission under a name that is not taken, and returns its id. Beyond the bound
// nothing is added.
func (d *Draft) permit(id string, r authz.Rule) string {
	if id = name(id); id == "" {
		id = "permission"
	}
	if d.taken == nil {
		d.taken, d.next = map[string]bool{}, map[string]int{}
	}
	base := id
	for d.taken[id] {
		d.next[base]++
		id = base + "-" + strconv.Itoa(d.next[base]+1)
	}
	d.taken[id] = true
	if len(d.Spec.Permissions) >= maxPermissions {
		if len(d.taken) == maxPermissions+1 {
			d.Remarks = append(d.Remarks, fmt.Sprintf("TODO: the source asks for more than %d permissions, of which the others are left out; split the plugin", maxPermissions))
		}
		return id
	}
	r.ID, r.Reason = id, todoText
	d.Spec.Permissions = append(d.Spec.Permissions, configs.Permission{Rule: r})
	return id
}

// credential adds a credential, once for each name, and returns the name. Beyond the bound of
// permissions none is added.
func (d *Draft) credential(text string, kind configs.CredentialKind, purpose string) string {
	id := name(text)
	if id == "" {
		id = "credential"
	}
	if len(d.Spec.Credentials) < maxPermissions && !slices.ContainsFunc(d.Spec.Credentials, func(c configs.ManifestCredential) bool { return c.Name == id }) {
		d.Spec.Credentials = append(d.Spec.Credentials, configs.ManifestCredential{Name: id, Kind: kind, Purpose: cmp.Or(sourceText(purpose), todoText)})
	}
	return id
}

// withoutSecret returns a text, or that it looked like a secret: a source's secrets are not
// copied into a draft.
func withoutSecret(text string) string {
	if found := secrets([]byte(text)); len(found) > 0 {
		return "it looks like " + found[0].name + ", which is not copied; name a credential"
	}
	return text
}

// sourceText returns a text of a source for a field, "" for one that looks like a secret.
func sourceText(s string) string {
	if s = clipText(s); len(secrets([]byte(s))) > 0 {
		return ""
	}
	return s
}

// clipText returns a text of a source as one line of bounded length.
func clipText(s string) string {
	return printable.Clip(strings.Join(strings.Fields(s), " "), maxText)
}

// draftWriter writes YAML in which every text of a source is quoted, or escaped in a comment.
type draftWriter struct{ b strings.Builder }

// line writes one line. Its arguments are numbers, constants, or texts from quote and list.
func (w *draftWriter) line(format string, args ...any) {
	w.b.WriteString(printable.Text(fmt.Sprintf(format, args...)))
	w.b.WriteByte('\n')
}

// quoteAll returns a text as YAML and Go read it, in ASCII on one line.
func quoteAll(s string) string { return strconv.QuoteToASCII(s) }

func list(texts []string) string {
	words := make([]string, len(texts))
	for i, t := range texts {
		words[i] = quoteAll(t)
	}
	return "[" + strings.Join(words, ", ") + "]"
}

// YAML writes the draft as a PluginManifest, with what is open as comments.
func (d *Draft) YAML(to io.Writer) error {
	w := &draftWriter{}
	w.line("# A draft from %s, which asks for nothing that its source does not state.", printable.Clip(d.Source, maxText))
	w.line("# Replace each TODO, then: chaperonectl plugin check")
	for _, line := range d.Remarks {
		w.line("# %s.", printable.Text(line))
	}
	if len(d.Todos) > 0 {
		w.line("# Open, and not asked for below (%s):", phrase.Count(len(d.Todos), "point"))
	}
	for _, t := range d.Todos {
		at := ""
		if t.Line > 0 {
			at = fmt.Sprintf(" (line %d)", t.Line)
		}
		w.line("# TODO %s%s: %s.", cmp.Or(t.Field, "file"), at, t.Message)
	}
	s := &d.Spec
	w.line("apiVersion: %s", configs.APIVersion)
	w.line("kind: %s", configs.KindManifest)
	w.line("metadata: {name: %s}", quoteAll(d.Name))
	w.line("spec:")
	w.line("  version: %s", quoteAll(s.Version))
	w.line("  vendor: %s # the domain of who makes the plugin", quoteAll(s.Vendor))
	w.line("  purpose: %s # for those who approve and use the plugin", quoteAll(s.Purpose))
	w.artifact(s.Artifact)
	if s.Support.Contact != "" {
		w.line("  support: {contact: %s}", quoteAll(s.Support.Contact))
	}
	if d.Limits != "" {
		w.line("  # limits: {%s}", d.Limits)
	}
	if len(s.Permissions) == 0 {
		w.example()
	} else {
		w.line("  permissions:")
	}
	for i := range s.Permissions {
		w.permission(&s.Permissions[i], d.Comments[s.Permissions[i].ID])
	}
	if len(s.Credentials) > 0 {
		w.line("  credentials: # names; their sources are stated by whoever runs the plugin")
	}
	for _, c := range s.Credentials {
		w.line("  - {name: %s, kind: %s, purpose: %s}", quoteAll(c.Name), c.Kind, quoteAll(c.Purpose))
	}
	_, err := io.WriteString(to, w.b.String())
	return err
}

// example writes an empty list of permissions, with everything that one may state as comments.
func (w *draftWriter) example() {
	for _, line := range []string{
		`  permissions: []`,
		`  # - id: read-forecast                  # unique, as in the rules of a grant`,
		`  #   reason: Shows the forecast         # for those who approve`,
		`  #   optional: false                    # true for a permission that the plugin works without`,
		`  #   to: {hosts: [api.weather.example], ports: [443], tls: {min: "1.3"}}`,
		`  #   methods: [GET]`,
		`  #   paths: ["/v1/forecast/*"]          # * is one segment, ** at the end is the rest`,
		`  #   credential: weather-key            # a name from the list below`,
		`  #   data: {classes: [internal], regions: [eu], retention: none}`,
		`  # credentials:`,
		`  # - {name: weather-key, kind: bearer, purpose: Reads forecasts} # never a path or a secret`,
		`  # limits: {requests: 100/1m}           # as in a grant`,
		`  # docs: {runbook: runbook.md, dataFlow: dataflow.md, privacy: privacy.md} # beside this file, or digests`,
		`  # contacts: [{name: on call, email: oncall@acme.example}]`,
		`  # support: {contact: sec@acme.example, endOfSupport: 2028-06-30T00:00:00Z}`,
		`  # supersedes: [0.0.9]`,
	} {
		w.line("%s", line)
	}
}

func (w *draftWriter) artifact(a configs.Artifact) {
	purl := ""
	if a.PURL != "" {
		purl = ", purl: " + quoteAll(a.PURL)
	}
	comment := ""
	if a.Digest == noDigest {
		comment = " # TODO: the digest of what is executed"
	}
	w.line("  artifact: {kind: %s, digest: %s%s}%s", a.Kind, quoteAll(a.Digest), purl, comment)
}

func (w *draftWriter) permission(p *configs.Permission, comments []string) {
	for _, c := range comments {
		w.line("  # %s", c)
	}
	w.line("  - id: %s", quoteAll(p.ID))
	w.line("    reason: %s", quoteAll(p.Reason))
	if p.Optional {
		w.line("    optional: true")
	}
	w.line("    to: {%s}", destinationText(p.To))
	if p.To.Scheme == "" || p.To.Scheme.HTTP() {
		w.http(p)
	}
	w.database(p)
	if p.Credential != "" {
		w.line("    credential: %s", quoteAll(p.Credential))
	}
	if p.WildcardCredential {
		w.line("    wildcardCredential: true")
	}
	if p.Insecure {
		w.line("    insecure: true")
	}
}

func (w *draftWriter) http(p *configs.Permission) {
	if len(p.Methods) > 0 {
		w.line("    methods: %s", list(p.Methods))
	} else {
		w.line("    # methods: [GET] # TODO: the methods that the plugin uses")
	}
	switch {
	case len(p.Paths) == 0:
		w.line("    # paths: [/v1/items/*] # TODO: the paths that the plugin uses")
	case len(p.Paths) == 1:
		w.line("    paths: %s", list(p.Paths))
	default:
		w.line("    paths:")
		for _, path := range p.Paths {
			w.line("    - %s", quoteAll(path))
		}
	}
	if len(p.Upgrades) > 0 {
		w.line("    upgrades: %s", list(p.Upgrades))
	}
	if p.EncodedSlash != "" {
		w.line("    encodedSlash: %s", quoteAll(p.EncodedSlash))
	}
}

func (w *draftWriter) database(p *configs.Permission) {
	lists := func(indent string, fields ...any) {
		for i := 0; i+1 < len(fields); i += 2 {
			if values, _ := fields[i+1].([]string); len(values) > 0 {
				w.line("%s%s: %s", indent, fields[i], list(values))
			}
		}
	}
	lists("    ", "databases", texts(p.Databases))
	if s := p.Statements; s != nil {
		w.line("    statements:")
		lists("      ", "verbs", s.Verbs, "tables", s.Tables, "functions", s.Functions)
	}
	lists("    ", "commands", p.Commands, "keys", p.Keys, "channels", p.Channels)
}

func destinationText(to authz.To) string {
	var parts []string
	if to.Scheme != "" {
		parts = append(parts, "scheme: "+string(to.Scheme))
	}
	parts = append(parts, "hosts: "+list(to.Hosts))
	if len(to.Ports) > 0 {
		ports := make([]string, len(to.Ports))
		for i, p := range to.Ports {
			ports[i] = strconv.Itoa(int(p))
		}
		parts = append(parts, "ports: ["+strings.Join(ports, ", ")+"]")
	}
	if len(to.Addresses) > 0 {
		var addresses []string
		for _, a := range to.Addresses {
			addresses = append(addresses, a.String())
		}
		parts = append(parts, "addresses: "+list(addresses))
	}
	if to.TLS.Min != "" {
		parts = append(parts, "tls: {min: "+quoteAll(to.TLS.Min)+"}")
	}
	return strings.Join(parts, ", ")
}
