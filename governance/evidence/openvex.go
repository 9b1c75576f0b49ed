package evidence

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// OpenVEX 0.0.1 and 0.2.0 (https://github.com/openvex/spec).
type (
	vexDocument struct {
		Context    string         `json:"@context"`
		Author     string         `json:"author"`
		Timestamp  string         `json:"timestamp"`
		Updated    string         `json:"last_updated"`
		Tooling    string         `json:"tooling"`
		Statements []vexStatement `json:"statements"`
	}
	vexStatement struct {
		Vulnerability json.RawMessage `json:"vulnerability"` // a name until 0.0.1, an object since
		Timestamp     string          `json:"timestamp"`
		Updated       string          `json:"last_updated"`
		Products      []vexProduct    `json:"products"`
		Status        Status          `json:"status"`
		Justification string          `json:"justification"`
		Impact        string          `json:"impact_statement"`
		Action        string          `json:"action_statement"`
	}
	vexVulnerability struct {
		ID      string   `json:"@id"`
		Name    string   `json:"name"`
		Aliases []string `json:"aliases"`
	}
	vexProduct struct {
		ID            string            `json:"@id"`
		Identifiers   map[string]string `json:"identifiers"`
		Hashes        map[string]string `json:"hashes"`
		Subcomponents []vexProduct      `json:"subcomponents"`
	}
)

// UnmarshalJSON reads a product, which is a name in 0.0.1.
func (p *vexProduct) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		if err := json.Unmarshal(data, &p.ID); err != nil {
			return fmt.Errorf("product: %w", err)
		}
		return nil
	}
	type plain vexProduct
	if err := json.Unmarshal(data, (*plain)(p)); err != nil {
		return fmt.Errorf("product: %w", err)
	}
	return nil
}

// justifications are those of OpenVEX, section Status Justifications.
func justifications() []string {
	return []string{
		"component_not_present", "vulnerable_code_not_present", "vulnerable_code_not_in_execute_path",
		"vulnerable_code_cannot_be_controlled_by_adversary", "inline_mitigations_already_exist",
	}
}

func readOpenVEX(data []byte, source Source, o Options) ([]Normalised, error) {
	var doc vexDocument
	if err := decode(data, &doc); err != nil {
		return nil, err
	}
	context := strings.TrimSuffix(doc.Context, "/")
	version, found := strings.CutPrefix(context, "https://openvex.dev/ns")
	if version = strings.TrimPrefix(version, "/v"); !found || !slices.Contains([]string{"", "0.0.1", "0.2.0"}, version) {
		return nil, fmt.Errorf("@context is %s; https://openvex.dev/ns/v0.2.0 and v0.0.1 are supported", quote(doc.Context))
	}
	if version == "" {
		version = "0.0.1"
	}
	if len(doc.Statements) == 0 || len(doc.Statements) > maxStatements {
		return nil, fmt.Errorf("it has %d statements; 1 to %d are allowed", len(doc.Statements), maxStatements)
	}
	var r reader
	out := VEXPredicate{Head: o.head(), Author: r.required("author", doc.Author)}
	source.Format = "openvex-" + version
	source.observed(r.time("timestamp", cmp.Or(doc.Updated, doc.Timestamp)))
	if doc.Tooling != "" {
		source.Tools = []Tool{{Name: text(doc.Tooling)}}
	}
	out.Source = source
	for i := range doc.Statements {
		all := doc.Statements[i].normalise(&r, cmp.Or(doc.Updated, doc.Timestamp), o.IssuedAt)
		if r.err != nil {
			return nil, fmt.Errorf("statements[%d]: %w", i, r.err)
		}
		if out.Statements = append(out.Statements, all...); len(out.Statements) > maxStatements {
			return nil, fmt.Errorf("it has more than %d statements about products", maxStatements)
		}
	}
	slices.SortFunc(out.Statements, compareStatements)
	n, err := makePredicate(TypeVEX, out, nil, fmt.Sprintf("%d VEX statements", len(out.Statements)))
	if err != nil {
		return nil, err
	}
	return []Normalised{n}, nil
}

func compareStatements(a, b Statement) int {
	x, _ := Canonical(a)
	y, _ := Canonical(b)
	return cmp.Compare(string(x), string(y))
}

// normalise returns a statement about the products without subcomponents, and one about the
// subcomponents of each other product: in another product they may be used in another way.
func (s *vexStatement) normalise(r *reader, documentTime string, now time.Time) (all []Statement) {
	v := s.vulnerability(r)
	out := Statement{
		Vulnerability: v.Name, Aliases: v.Aliases, Status: s.Status,
		Justification: r.name("justification", s.Justification), Impact: text(s.Impact), Action: text(s.Action),
		At: r.time("timestamp", cmp.Or(s.Updated, s.Timestamp, documentTime)),
	}
	switch s.Status {
	case NotAffected:
		if out.Justification == "" && out.Impact == "" {
			r.fail("status not_affected needs a justification or an impact_statement")
		}
	case Affected:
		if out.Action == "" {
			r.fail("status affected needs an action_statement")
		}
	case Fixed, UnderInvestigation:
	default:
		r.fail("status %s is not one of OpenVEX", quote(string(s.Status)))
	}
	if out.Justification != "" && !slices.Contains(justifications(), out.Justification) {
		r.fail("justification %s is not one of OpenVEX: %s", quote(out.Justification), strings.Join(justifications(), ", "))
	}
	if out.At != nil && out.At.After(now.Add(maxAhead)) { // it would count as the newest one until then
		r.fail("timestamp %s is in the future: the time is %s", out.At.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	for i := range s.Products {
		p := &s.Products[i]
		if len(p.Subcomponents) == 0 {
			p.names(r, &out.Components)
			continue
		}
		of := out
		of.Products, of.Components = nil, nil
		p.names(r, &of.Products)
		for j := range p.Subcomponents {
			p.Subcomponents[j].names(r, &of.Components)
		}
		of.Products, of.Components = sorted(of.Products), sorted(of.Components)
		all = append(all, of)
	}
	if len(s.Products) == 0 {
		r.fail("products are missing: a statement about no product applies to nothing")
	}
	if out.Components = sorted(out.Components); len(out.Components) > 0 {
		all = append(all, out)
	}
	return all
}

// vulnerability reads either form.
func (s *vexStatement) vulnerability(r *reader) vexVulnerability {
	var v vexVulnerability
	if json.Unmarshal(s.Vulnerability, &v.Name) != nil {
		if err := json.Unmarshal(s.Vulnerability, &v); err != nil || s.Vulnerability == nil {
			r.fail("vulnerability is neither a name nor an object with one")
		}
	}
	if v.Name == "" {
		v.Name = v.ID[strings.LastIndexByte(v.ID, '/')+1:]
	}
	v.Name = r.required("vulnerability name", v.Name)
	for i := range v.Aliases {
		v.Aliases[i] = r.name("vulnerability aliases", v.Aliases[i])
	}
	v.Aliases = sorted(v.Aliases)
	return v
}

// names adds the ways in which a product is named.
func (p *vexProduct) names(r *reader, out *[]string) {
	before := len(*out)
	add := func(s string) {
		if s != "" {
			*out = append(*out, s)
		}
	}
	add(r.name("product @id", p.ID))
	for _, id := range p.Identifiers {
		add(r.name("product identifier", id))
	}
	for algorithm, value := range p.Hashes {
		add(r.sha256(algorithm, value))
	}
	if len(*out) == before {
		r.fail("a product has neither @id nor identifiers nor a SHA-256")
	}
}
