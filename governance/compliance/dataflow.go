package compliance

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// Flow is a flow of data from a plugin to a destination.
type Flow struct {
	Permission string `json:"permission,omitempty"` // "" for one that is not declared
	// Targets are scheme://host:port, as declared or as observed.
	Targets    []string `json:"targets"`
	Methods    []string `json:"methods,omitempty"`
	Classes    []string `json:"classes,omitempty"`
	Regions    []string `json:"regions,omitempty"`
	Retention  string   `json:"retention,omitempty"`
	Credential string   `json:"credential,omitempty"`
	State      State    `json:"state"`
	Uses       uint64   `json:"uses"`
}

// State is how a declared and an observed flow agree.
type State string

// The states.
const (
	StateDeclared   State = "declared"   // there is no pilot to compare with
	StateUsed       State = "used"       // declared and observed
	StateUnused     State = "unused"     // declared, and not observed: a note
	StateUndeclared State = "undeclared" // observed, and not declared: an error
)

// Flows returns the declared flows in their order, then those that were observed beside
// them. trace is nil without a pilot.
func Flows(declared authz.Grant, trace *pilot.Trace) []Flow {
	uses := map[string]uint64{}
	if trace != nil {
		for _, u := range trace.Declared {
			uses[u.Permission] = u.Uses
		}
	}
	var out []Flow
	for i := range declared.Rules {
		r := &declared.Rules[i]
		f := Flow{Permission: r.ID, Methods: r.Methods, Regions: r.Data.Regions, Retention: string(r.Data.Retention), Credential: r.Credential, Uses: uses[r.ID], State: StateDeclared}
		for _, class := range r.Data.Classes {
			f.Classes = append(f.Classes, string(class))
		}
		for _, host := range r.To.Hosts {
			f.Targets = append(f.Targets, fmt.Sprintf("%s://%s%s", cmp.Or(r.To.Scheme, authz.SchemeHTTPS), host, ports(r.To.Ports)))
		}
		switch {
		case trace != nil && f.Uses > 0:
			f.State = StateUsed
		case trace != nil:
			f.State = StateUnused
		}
		out = append(out, f)
	}
	if trace == nil {
		return out
	}
	for _, u := range trace.Undeclared {
		target := u.Host
		if u.Scheme != "" {
			target = u.Scheme + "://" + target
		}
		f := Flow{Targets: []string{target + ports([]uint16{u.Port})}, State: StateUndeclared, Uses: u.Count}
		if u.Method != "" {
			f.Methods = []string{u.Method}
		}
		out = append(out, f)
	}
	return out
}

// ports returns ports behind a host, "" for the default of the scheme.
func ports(list []uint16) string {
	var words []string
	for _, p := range list {
		if p != 0 {
			words = append(words, fmt.Sprint(p))
		}
	}
	if len(words) == 0 {
		return ""
	}
	return ":" + strings.Join(words, ",")
}

// Mermaid returns the flows as a flowchart in Mermaid (mermaid.js.org/syntax/flowchart),
// without a fence around it. Its source has no text of a log but escaped.
func Mermaid(plugin string, flows []Flow) string {
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	fmt.Fprintf(&b, "  plugin[%s]\n", label("plugin "+plugin))
	nodes := map[string]string{}
	for i := range flows {
		f := &flows[i]
		for _, target := range f.Targets {
			node, ok := nodes[target]
			if !ok {
				node = fmt.Sprintf("d%d", len(nodes))
				nodes[target] = node
				fmt.Fprintf(&b, "  %s[%s]\n", node, label(target))
			}
			fmt.Fprintf(&b, "  plugin %s|%s| %s\n", arrow(f.State), label(f.text()), node)
			if f.State == StateUndeclared {
				fmt.Fprintf(&b, "  class %s undeclared\n", node)
			}
		}
	}
	b.WriteString("  classDef undeclared stroke:#c00,stroke-width:3px\n")
	return b.String()
}

// arrow returns the line of a flow: a thick one if it is not declared, a dotted one if it is
// not used.
func arrow(s State) string {
	switch s {
	case StateUndeclared:
		return "==>"
	case StateUnused:
		return "-.->"
	case StateDeclared, StateUsed:
	}
	return "-->"
}

// text describes a flow on its line.
func (f *Flow) text() string {
	parts := []string{strings.TrimSpace(f.Permission + " " + strings.Join(f.Methods, " "))}
	if len(f.Classes) > 0 {
		parts = append(parts, strings.Join(f.Classes, ", "))
	}
	if len(f.Regions) > 0 {
		parts = append(parts, "in "+strings.Join(f.Regions, ", "))
	}
	if f.Retention != "" {
		parts = append(parts, "kept "+f.Retention)
	}
	if f.Credential != "" {
		parts = append(parts, "with "+f.Credential)
	}
	switch f.State {
	case StateUsed:
		parts = append(parts, fmt.Sprintf("%d uses", f.Uses))
	case StateUnused:
		parts = append(parts, "unused")
	case StateUndeclared:
		parts = append(parts, fmt.Sprintf("UNDECLARED, %d uses", f.Uses))
	case StateDeclared:
	}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " / ")
}

// plain are the characters that mean nothing in Mermaid, Markdown and HTML within a quoted
// label.
const plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .,:/-"

// label returns a quoted label of a node or a line. Every character that could mean
// something is written as an entity, which Mermaid spells #NUMBER;.
func label(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range printable.Text(printable.Clip(text, maxText)) {
		if strings.ContainsRune(plain, r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "#%d;", r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// Findings returns the differences between the declared and the observed flows.
func Findings(flows []Flow) []pilot.Finding {
	var out []pilot.Finding
	for i := range flows {
		f := &flows[i]
		where := printable.Text(strings.TrimSpace(strings.Join(f.Methods, " ") + " " + strings.Join(f.Targets, " ")))
		switch f.State {
		case StateUndeclared:
			out = append(out, pilot.Finding{Level: pilot.LevelError, Text: fmt.Sprintf("undeclared flow: %s, %d times; declare it in the manifest with its reason, or remove it from the plugin", where, f.Uses)})
		case StateUnused:
			out = append(out, pilot.Finding{Level: pilot.LevelNote, Text: fmt.Sprintf("unused flow: permission %s to %s; remove it, or have the load use it", printable.Text(f.Permission), where)})
		case StateDeclared, StateUsed:
		}
	}
	return out
}
