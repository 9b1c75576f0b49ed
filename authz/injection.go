package authz

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unicode"
	"unicode/utf8"
)

// InjectionKind is the kind of place in a request that carries a credential.
type InjectionKind uint8

// The kinds of injection. InjectNone is the zero value.
const (
	InjectNone InjectionKind = iota
	InjectHeader
	InjectQuery
	InjectCookie
	InjectCertificate // a TLS client certificate
	InjectSigV4       // an AWS signature
	InjectDatabase    // the login of a database's session
)

// Injection is a rendered credential and its slot. The door first removes the
// plugin's own content of the slot.
type Injection struct {
	Kind       InjectionKind
	Name       string // lower-case header name, query parameter or cookie name; for InjectDatabase, the user name
	Value      Secret // for InjectSigV4, the secret access key; for InjectDatabase, the password; empty for InjectCertificate
	Generation uint64 // of the credential

	// For InjectCertificate: PEM that has been parsed and matches.
	Certificate Secret // the certificate, then the chain up to its authority
	PrivateKey  Secret

	// For InjectSigV4.
	KeyID           string
	Session         Secret // empty without one
	Service, Region string

	Placeholder bool // the plugin's environment has a placeholder for the credential

	secrets *[]Secret
	public  *[]string
}

// NotSecret returns the parts of the value that are not secret: the text of its
// template, and the fields that its grant declares so. Callers must not change
// the result.
func (i Injection) NotSecret() []string {
	if i.public == nil {
		return nil
	}
	return *i.public
}

// Secrets returns all secrets that are sent to the upstream and must not come back
// in an answer: the injected value, and the fields of Vault's answer that it
// contains. A private key is left out, since it is not sent; the secret key of a
// signature is included. Callers must not change the result.
func (i Injection) Secrets() []Secret {
	if i.secrets != nil {
		return *i.secrets
	}
	var out []Secret
	for _, s := range []Secret{i.Value, i.Session} {
		if !s.Empty() {
			out = append(out, s)
		}
	}
	return out
}

// credentialSpec is a compiled CredentialSpec.
type credentialSpec struct {
	ref             CredentialRef
	kind            InjectionKind
	name            string
	service, region string
	basic           bool
	placeholder     *Placeholder

	notSecret  []string     // of fields
	exemptions []*Exemption // that its lifetime needs

	parts  []template // in the order that renderParts expects
	fields []string   // that the parts name, in order

	// The last rendering, so that a request with a known credential costs one load.
	rendered atomic.Pointer[rendering]
}

// rendering is a rendered credential and its ingredients.
type rendering struct {
	from      []Secret // the fields that the parts name, in order
	injection Injection
}

// addPart adds a part.
func (c *credentialSpec) addPart(part template) {
	c.parts = append(c.parts, part)
	c.fields = append(c.fields, part.fields...)
}

// render returns the injection of a credential.
func (c *credentialSpec) render(credential Credential) (Injection, error) {
	fields := credential.Fields
	if c.kind == InjectCertificate {
		fields = credential.PEM
	}
	r := c.rendered.Load()
	if r == nil || !r.madeFrom(fields, c.fields) {
		injection, err := c.renderParts(fields)
		if err != nil {
			return Injection{}, fmt.Errorf("render credential %s: %w", c.ref.Name, credential.explain(err))
		}
		r = &rendering{injection: injection}
		for _, name := range c.fields {
			r.from = append(r.from, fields[name])
		}
		c.rendered.Store(r)
	}
	injection := r.injection
	injection.Generation = credential.Generation
	return injection, nil
}

// madeFrom reports whether the rendering was made from exactly these secrets. It
// compares their identity instead of a generation, because a value that was
// replaced must never be sent again.
func (r *rendering) madeFrom(fields map[string]Secret, names []string) bool {
	for i, name := range names {
		if fields[name] != r.from[i] {
			return false
		}
	}
	return true
}

// renderParts renders the parts into an injection, without its generation.
func (c *credentialSpec) renderParts(fields map[string]Secret) (Injection, error) {
	texts := make([]string, len(c.parts))
	for i, part := range c.parts {
		var err error
		if texts[i], err = part.render(fields); err != nil {
			return Injection{}, err
		}
	}
	out := Injection{Kind: c.kind, Name: c.name, Placeholder: c.placeholder != nil}
	secrets := []Secret{}
	switch c.kind {
	case InjectCertificate:
		chain, err := checkKeyPair(texts[0], texts[1], texts[2])
		if err != nil {
			return Injection{}, err
		}
		out.Certificate, out.PrivateKey = NewSecret(chain), NewSecret(texts[1])
	case InjectSigV4:
		for _, text := range texts {
			if err := noControls(text); err != nil {
				return Injection{}, err
			}
		}
		out.KeyID, out.Value, out.Service, out.Region = texts[0], NewSecret(texts[1]), c.service, c.region
		secrets = append(secrets, out.Value)
		if session := cmp.Or(texts[2:]...); session != "" {
			out.Session = NewSecret(session)
			secrets = append(secrets, out.Session)
		}
	case InjectDatabase:
		user, password, err := c.login(texts)
		if err != nil {
			return Injection{}, err
		}
		out.Name, out.Value = user, password
		secrets = append(append(secrets, password), c.componentSecrets(texts, fields)...)
		public := c.publicParts(fields)
		out.public = &public
	default:
		value, err := c.value(texts)
		if err != nil {
			return Injection{}, err
		}
		out.Value = NewSecret(value)
		secrets = append(secrets, out.Value)
		secrets = append(secrets, c.componentSecrets(texts, fields)...)
		public := c.publicParts(fields)
		out.public = &public
	}
	out.secrets = &secrets
	return out, nil
}

// login returns the user name and the password of a database's session.
func (c *credentialSpec) login(texts []string) (user string, password Secret, err error) {
	for _, text := range texts {
		if err := noControls(text); err != nil {
			return "", Secret{}, err
		}
	}
	return texts[0], NewSecret(texts[1]), nil
}

// value returns the content of a header, a query parameter or a cookie.
func (c *credentialSpec) value(texts []string) (string, error) {
	value := texts[0]
	if c.basic {
		password := texts[1]
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

// componentSecrets returns the parts of a value that are secret by themselves. A
// username is one if it is the only part from Vault.
func (c *credentialSpec) componentSecrets(texts []string, fields map[string]Secret) []Secret {
	var out []Secret
	part, whole := c.parts[0], texts[0]
	switch {
	case c.basic:
		out = append(out, NewSecret(texts[0]+":"+texts[1]))
		whole = ""
		if len(c.parts[1].fields) > 0 {
			part = c.parts[1]
		}
	case c.kind == InjectDatabase:
		part, whole = c.parts[1], texts[1]
	}
	for _, name := range part.fields {
		if slices.Contains(c.notSecret, name) {
			continue
		}
		if s := fields[name]; s.Reveal() != whole {
			out = append(out, s)
		}
	}
	return out
}

// publicParts returns the texts of the parts between the secrets. A username is
// not secret beside a password.
func (c *credentialSpec) publicParts(fields map[string]Secret) []string {
	var out []string
	for at, part := range c.parts {
		text := ""
		username := (c.basic || c.kind == InjectDatabase) && at == 0 && len(c.parts[1].fields) > 0
		for i, literal := range part.literals {
			text += literal
			if i < len(part.fields) && (username || slices.Contains(c.notSecret, part.fields[i])) {
				field := fields[part.fields[i]]
				text += field.Reveal()
				continue
			}
			if text != "" {
				out = append(out, text)
			}
			text = ""
		}
	}
	return out
}

func noControls(value string) error {
	for i := range len(value) {
		if value[i] < 0x20 || value[i] == 0x7f {
			return errors.New("value holds a control byte")
		}
	}
	return nil
}

// check refuses values that would end a header or split a cookie. Its error
// never contains the value.
func (c *credentialSpec) check(value string) error {
	if err := noControls(value); err != nil {
		return err
	}
	if c.kind == InjectCookie {
		for i := range len(value) {
			if b := value[i]; b >= 0x80 || strings.IndexByte(`;,"\ `, b) >= 0 {
				return errors.New("value holds a byte that a cookie value must not hold (RFC 6265, section 4.1.1)")
			}
		}
	}
	return nil
}

// template is text with {field} references: literal[0] field[0] literal[1] ...
type template struct {
	literals []string
	fields   []string
	optional bool // renders to "" if the answer lacks a field
}

// parseTemplate reads a template. Braces enclose fields; a literal brace cannot be
// written.
func parseTemplate(s string) (template, error) {
	var t template
	for {
		before, rest, found := strings.Cut(s, "{")
		if strings.Contains(before, "}") {
			return template{}, fmt.Errorf("%q has a } without a {; write {field}", clip(s))
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
			return template{}, fmt.Errorf("%q is not a field of Vault's answer; write {name}", clip("{"+rest))
		}
		t.fields = append(t.fields, field)
		s = after
	}
}

// isFieldName reports whether a template can name a field of Vault's answer this
// way: printable text without spaces at its ends. Braces, quotes and backslashes are
// excluded; they suggest a JSON document.
func isFieldName(s string) bool {
	return s != "" && utf8.ValidString(s) && strings.TrimSpace(s) == s && !strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.IsPrint(r) || strings.ContainsRune("{}\"\\", r)
	})
}

// missingFieldError reports that a template names a field that is missing.
type missingFieldError struct{ name string }

// Error names the field.
func (e *missingFieldError) Error() string { return "Vault's answer has no field " + e.name }

// explain adds the existing fields to the error of a missing field.
func (c Credential) explain(err error) error {
	missing := (*missingFieldError)(nil)
	if !errors.As(err, &missing) {
		return err
	}
	name := missing.name
	_, isText := c.Fields[name]
	_, isPEM := c.PEM[name]
	switch why := c.Unusable[name]; {
	case why != "":
		return fmt.Errorf("field %s of Vault's answer %s", name, why)
	case isPEM:
		return fmt.Errorf("field %s of Vault's answer is a PEM document, which only mtls uses", name)
	case isText && !c.Fields[name].Empty():
		return fmt.Errorf("field %s of Vault's answer is not a PEM document", name)
	}
	text := missing.Error() + "; it has " + c.fieldNames()
	if _, ok := c.Fields["current_version"]; ok && c.Unusable["versions"] != "" {
		text += ": it is the metadata of a secret; write MOUNT/data/NAME as the path"
	}
	return errors.New(text)
}

// fieldNames returns the names of the fields, including unusable ones.
func (c Credential) fieldNames() string {
	const most = 8
	seen := map[string]bool{}
	for name := range c.Fields {
		seen[name] = true
	}
	for name := range c.PEM {
		seen[name] = true
	}
	for name := range c.Unusable {
		seen[name] = true
	}
	names := slices.Sorted(maps.Keys(seen))
	more := len(names) - most
	if more > 0 {
		names = names[:most]
	}
	for i, name := range names {
		if !isFieldName(name) {
			name = strconv.Quote(name)
		}
		names[i] = clip(name)
	}
	switch text := strings.Join(names, ", "); {
	case text == "":
		return "no fields"
	case more > 0:
		return fmt.Sprintf("%s and %d more", text, more)
	default:
		return text
	}
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
			if t.optional {
				return "", nil
			}
			return "", &missingFieldError{t.fields[i]}
		}
		out.WriteString(value.Reveal())
	}
	return out.String(), nil
}
