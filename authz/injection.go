package authz

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"unicode"
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

	// The last rendering: a warm request pays a load.
	rendered atomic.Pointer[rendering]
}

// rendering is a rendered value and what it was made of.
type rendering struct {
	from  []Secret // the fields that the templates name, in their order
	value Secret
}

// render returns the injection of a credential.
func (c *credentialSpec) render(credential Credential) (Injection, error) {
	r := c.rendered.Load()
	if r == nil || !r.madeOf(credential.Fields, c.value.fields, c.password.fields) {
		value, err := c.text(credential.Fields)
		if err != nil {
			return Injection{}, fmt.Errorf("render credential %s: %w", c.ref.Name, err)
		}
		r = &rendering{value: NewSecret(value)}
		for _, name := range slices.Concat(c.value.fields, c.password.fields) {
			r.from = append(r.from, credential.Fields[name])
		}
		c.rendered.Store(r)
	}
	return Injection{Kind: c.kind, Name: c.name, Value: r.value, Generation: credential.Generation}, nil
}

// madeOf reports whether the rendering was made of these very secrets. Their
// identity is compared and not a number that says so, because a value that was
// replaced must never be sent again.
func (r *rendering) madeOf(fields map[string]Secret, first, second []string) bool {
	for i, from := range r.from {
		names, at := first, i
		if i >= len(first) {
			names, at = second, i-len(first)
		}
		if fields[names[at]] != from {
			return false
		}
	}
	return true
}

// text returns the value that goes on the wire.
func (c *credentialSpec) text(fields map[string]Secret) (string, error) {
	value, err := c.value.render(fields)
	if err != nil {
		return "", err
	}
	if c.basic {
		password, err := c.password.render(fields)
		if err != nil {
			return "", err
		}
		if strings.Contains(value, ":") {
			return "", errors.New("username holds a colon (RFC 7617, section 2)")
		}
		// The parts are checked before the encoding hides what is in them.
		if err := errors.Join(noControls(value), noControls(password)); err != nil {
			return "", err
		}
		value = "Basic " + base64.StdEncoding.EncodeToString([]byte(value+":"+password))
	}
	return value, c.check(value)
}

func noControls(value string) error {
	for i := range len(value) {
		if value[i] < 0x20 || value[i] == 0x7f {
			return errors.New("value holds a control byte")
		}
	}
	return nil
}

// check refuses values that would end a header or split a cookie. It never
// says what the value is.
func (c *credentialSpec) check(value string) error {
	if err := noControls(value); err != nil {
		return err
	}
	if c.kind == InjectCookie {
		for i := range len(value) {
			if b := value[i]; b >= 0x80 || strings.IndexByte(`;,"\ `, b) >= 0 {
				return errors.New("value holds a byte that is not in a cookie value (RFC 6265, section 4.1.1)")
			}
		}
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
		if strings.ContainsFunc(before, unicode.IsControl) {
			return template{}, fmt.Errorf("%q holds a control byte", clip(before))
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
