package grantcheck

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

const (
	apiVersion    = "chaperone.dev/v1alpha1"
	kindGrant     = "PluginGrant"
	kindExemption = "GrantExemption"
)

// document is a signed document. The fields of its spec that are not looked at here are
// decoded strictly by package configs.
type document struct {
	APIVersion string                     `json:"apiVersion"`
	Kind       string                     `json:"kind"`
	Metadata   map[string]json.RawMessage `json:"metadata"`
	Spec       map[string]json.RawMessage `json:"spec"`

	name string
}

func readDocument(payload []byte, kind string) (*document, error) {
	d := &document{}
	if err := dsse.Decode(payload, d); err != nil {
		return nil, fmt.Errorf("read %s: %w", kind, err)
	}
	if d.APIVersion != apiVersion || d.Kind != kind {
		return nil, fmt.Errorf("read %s: it is a %s of %s; a %s of %s is required", kind, quote(d.Kind), quote(d.APIVersion), kind, apiVersion)
	}
	if err := json.Unmarshal(d.Metadata["name"], &d.name); err != nil || d.name == "" {
		return nil, fmt.Errorf("read %s: metadata.name is not a text", kind)
	}
	return d, nil
}

// field reads a field of the spec strictly. A field that is not there leaves out alone.
func (d *document) field(name string, out any) error {
	raw, ok := d.Spec[name]
	if !ok {
		return nil
	}
	if err := dsse.Decode(raw, out); err != nil {
		return fmt.Errorf("read %s: spec.%s: %w", d.Kind, name, err)
	}
	return nil
}

// grant is what [Check] needs of a PluginGrant.
type grant struct {
	name, plugin        string
	notBefore, notAfter time.Time
	binding             *Binding
	limits              authz.Limits
	rules               []ruleLimits
}

func readGrant(payload []byte) (*grant, error) {
	d, err := readDocument(payload, kindGrant)
	if err != nil {
		return nil, err
	}
	g := &grant{name: d.name}
	for _, f := range []struct {
		name string
		out  any
	}{{"plugin", &g.plugin}, {"notBefore", &g.notBefore}, {"notAfter", &g.notAfter}, {"binding", &g.binding}, {"limits", &g.limits}} {
		if err := d.field(f.name, f.out); err != nil {
			return nil, err
		}
	}
	if g.rules, err = d.readRules(); err != nil {
		return nil, err
	}
	return g, nil
}

// ReadExemption reads the payload of a verified GrantExemption.
func ReadExemption(payload []byte) (Exemption, error) {
	d, err := readDocument(payload, kindExemption)
	if err != nil {
		return Exemption{}, err
	}
	var scope struct {
		Plugin     string `json:"plugin"`
		Permission string `json:"permission"`
	}
	e := Exemption{Name: d.name, Digest: dsse.Digest(payload), Payload: payload}
	for _, f := range []struct {
		name string
		out  any
	}{
		{"guardrailRule", &e.GuardrailRule},
		{"scope", &scope},
		{"allow", &e.Allow},
		{"compensatingControls", &e.Controls},
		{"owner", &e.Owner},
		{"ticket", &e.Ticket},
		{"notAfter", &e.NotAfter},
		{"maxUses", &e.MaxUses},
	} {
		if err := d.field(f.name, f.out); err != nil {
			return Exemption{}, err
		}
	}
	e.Plugin, e.Permission = scope.Plugin, scope.Permission
	switch {
	case !authz.IsName(e.Plugin):
		return e, fmt.Errorf("read %s: spec.scope.plugin %s is not a plugin's name", kindExemption, quote(e.Plugin))
	case e.GuardrailRule == "" || e.Owner == "" || e.Ticket == "":
		return e, fmt.Errorf("read %s: spec.guardrailRule, spec.owner and spec.ticket are required", kindExemption)
	case e.NotAfter.IsZero():
		return e, fmt.Errorf("read %s: spec.notAfter is missing; every exemption ends", kindExemption)
	case e.MaxUses < 0:
		return e, fmt.Errorf("read %s: spec.maxUses is %d; a number above 0 is required, or none", kindExemption, e.MaxUses)
	}
	return e, nil
}
