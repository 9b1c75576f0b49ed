package authz

import (
	"encoding/base64"
	"fmt"
	"strings"
	"sync/atomic"
)

// InjectionKind says where in a request a credential goes.
type InjectionKind uint8

// The kinds of injection. InjectNone is the zero value.
const (
	InjectNone InjectionKind = iota
	InjectHeader
	InjectQuery
	InjectCookie
)

// Injection is a rendered credential and its slot. The door first removes
// whatever the plugin put into the slot.
type Injection struct {
	Kind       InjectionKind
	Name       string // lower-case header name, query parameter or cookie name
	Value      Secret
	Generation uint64 // of the credential
}

// credentialSpec is a compiled CredentialSpec.
type credentialSpec struct {
	ref      CredentialRef
	kind     InjectionKind
	name     string
	value    template
	password template // of basic; value is then its username
	basic    bool

	// The rendering of the current generation: a warm request pays a load.
	rendered atomic.Pointer[renderedCredential]
}

type renderedCredential struct {
	lease     string
	injection Injection
}

// render returns the injection of a credential.
func (c *credentialSpec) render(credential Credential) (Injection, error) {
	if r := c.rendered.Load(); r != nil && r.injection.Generation == credential.Generation && r.lease == credential.Lease {
		return r.injection, nil
	}
	value, err := c.value.render(credential.Fields)
	if err == nil && c.basic {
		var password string
		if password, err = c.password.render(credential.Fields); err == nil && strings.Contains(value, ":") {
			err = fmt.Errorf("username holds a colon (RFC 7617, section 2)")
		}
		value = "Basic " + base64.StdEncoding.EncodeToString([]byte(value+":"+password))
	}
	if err == nil {
		err = c.check(value)
	}
	if err != nil {
		return Injection{}, fmt.Errorf("render credential %s: %w", c.ref.Name, err)
	}
	injection := Injection{Kind: c.kind, Name: c.name, Value: NewSecret(value), Generation: credential.Generation}
	c.rendered.Store(&renderedCredential{lease: credential.Lease, injection: injection})
	return injection, nil
}

// check refuses values that would end a header or split a cookie. It never
// says what the value is.
func (c *credentialSpec) check(value string) error {
	for i := range len(value) {
		b := value[i]
		if b < 0x20 || b == 0x7f {
			return fmt.Errorf("value holds a control byte")
		}
		if c.kind == InjectCookie && (b == ';' || b == ',' || b == '"' || b == '\\' || b == ' ' || b >= 0x80) {
			return fmt.Errorf("value holds a byte that is not in a cookie value (RFC 6265, section 4.1.1)")
		}
	}
	if value == "" {
		return fmt.Errorf("value is empty")
	}
	return nil
}

// template is text with {field} references: literal[0] field[0] literal[1] ...
type template struct {
	literals []string
	fields   []string
}

// parseTemplate reads a template. Braces stand for fields only; none can be
// written literally.
func parseTemplate(s string) (template, error) {
	var t template
	for {
		before, rest, found := strings.Cut(s, "{")
		if strings.Contains(before, "}") {
			return template{}, fmt.Errorf("%q has a } without a {", clip(s))
		}
		t.literals = append(t.literals, before)
		if !found {
			return t, nil
		}
		field, after, closed := strings.Cut(rest, "}")
		if !closed || !isFieldName(field) {
			return template{}, fmt.Errorf("%q does not name a field of Vault's answer as {name}", clip("{"+rest))
		}
		t.fields = append(t.fields, field)
		s = after
	}
}

func isFieldName(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlpha(c) && !isDigit(c) && c != '_' && c != '-' && c != '.' {
			return false
		}
	}
	return s != ""
}

func (t template) render(fields map[string]Secret) (string, error) {
	var out strings.Builder
	for i, literal := range t.literals {
		out.WriteString(literal)
		if i == len(t.fields) {
			break
		}
		value, ok := fields[t.fields[i]]
		if !ok || value.Empty() {
			return "", fmt.Errorf("the answer has no field %s", t.fields[i])
		}
		out.WriteString(value.Reveal())
	}
	return out.String(), nil
}
