package vault

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/chaperone-proxy/chaperone/authz"
)

// What kind of credential an answer holds is seen from the answer and not from
// the path, since engines are mounted anywhere:
//
//   - a lease (database, aws, ...) has an id and a duration of its own;
//   - a certificate (pki) ends with itself and is revoked by its serial number;
//   - a static role's password (database, ldap, ...) is replaced by Vault, which
//     says in how many seconds;
//   - a token that is made for each answer (identity) ends after so many seconds;
//   - anything else (kv) is a value, which may be another one whenever it is read.

const (
	// rotationPoll is how long a password may still be served after the moment
	// at which Vault was to replace it, while Vault is asked whether it has; half
	// of it is how often. Vault may be up to five seconds late
	// (builtin/logical/database/rotation.go: defaultQueueTickSeconds).
	rotationPoll = time.Second
	// askAgainEvery bounds how often Refused asks about one credential.
	askAgainEvery = 5 * time.Second
)

// leaseOf returns the lease that an answer to a request sent at issued is. Its
// error says why the answer is of no use.
func (b *Broker) leaseOf(answer *api.Secret, s *session, ref authz.CredentialRef, issued instant) (*lease, error) {
	fields, err := fieldsOf(answer, ref.TrimNewline)
	if err != nil {
		return nil, err
	}
	l := &lease{
		id: answer.LeaseID, session: s, fields: fields, renewable: answer.Renewable,
		minted: issued, granted: seconds(answer.LeaseDuration),
	}
	last := ceiling(issued, ref.Lifetime)
	serial, certificate := certificateOf(answer, fields)
	if certificate != nil {
		last = earliest(last, issued.add(certificate.NotAfter.Sub(issued.time())))
	}
	ttl, hasTTL := ttlOf(answer)
	switch {
	case l.id != "" && l.granted <= 0:
		return nil, errors.New("the lease has no duration")
	case l.id != "":
		l.window = newWindow(issued, l.granted, last, spread())
	case certificate != nil:
		l.mount = mountOf(ref.Path)
		l.id, l.renewable = l.mount+"/cert/"+serial, false
		l.granted = max(issued.until(last), 0)
		l.window = newWindow(issued, l.granted, last, spread())
	case hasTTL && answer.Data["last_vault_rotation"] != nil:
		l.window = b.staticWindow(issued, ttl, last)
	case hasTTL:
		l.window = newWindow(issued, ttl, last, spread())
	default:
		l.window = b.valueWindow(issued, l.granted, last)
	}
	return l, nil
}

// valueWindow returns the window of a value without a lease. A duration without
// a lease (KV version 1) only says how soon the value may be another one.
func (b *Broker) valueWindow(issued instant, hint time.Duration, last instant) window {
	w := newWindow(issued, b.cfg.Stale, last, 0)
	again := b.cfg.Refresh
	if hint > 0 {
		again = min(again, max(hint, time.Second))
	}
	w.refreshAt = earliest(w.refreshAt, issued.add(time.Duration(float64(again)*(1+spread()/10))))
	return w
}

// staticWindow returns the window of a password that Vault replaces in ttl. It
// is read again right then, and every so often until it has been replaced.
func (b *Broker) staticWindow(issued instant, ttl time.Duration, last instant) window {
	w := b.valueWindow(issued, 0, last)
	next := issued.add(max(ttl, rotationPoll/2))
	w.refreshAt = earliest(w.refreshAt, next)
	w.notAfter = earliest(w.notAfter, next.add(rotationPoll))
	return w
}

// ttlOf returns in how many seconds the credential of an answer without a lease
// ends. A value of KV may have a field of that name and means nothing by it:
// KV version 1 gives a duration too, and version 2 an envelope.
func ttlOf(answer *api.Secret) (time.Duration, bool) {
	number, ok := answer.Data["ttl"].(json.Number)
	if !ok || answer.LeaseID != "" || answer.LeaseDuration != 0 || isEnvelope(answer.Data) {
		return 0, false
	}
	ttl, err := number.Float64()
	if err != nil || math.IsNaN(ttl) {
		return 0, false
	}
	const longest = 10 * 365 * 24 * 3600
	return time.Duration(max(0, min(ttl, longest)) * float64(time.Second)), true
}

// certificateOf returns the certificate of an answer of a PKI engine's, nil
// when it is none, and the serial number that it is revoked by.
func certificateOf(answer *api.Secret, fields fieldSet) (serial string, certificate *x509.Certificate) {
	serial, _ = answer.Data["serial_number"].(string)
	if serial == "" || isEnvelope(answer.Data) {
		return "", nil
	}
	block, _ := pem.Decode([]byte(fields.pem["certificate"].Reveal()))
	if block == nil {
		return "", nil
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", nil
	}
	return serial, certificate
}

// mountOf returns where the engine is mounted that issues at path: paths are
// MOUNT/issue/ROLE, MOUNT/sign/ROLE and MOUNT/issuer/REF/issue/ROLE (Vault API,
// "PKI secrets engine").
func mountOf(path string) string {
	for _, verb := range []string{"/issuer/", "/issue/", "/sign/", "/sign-verbatim"} {
		if mount, _, ok := strings.Cut(path, verb); ok {
			return mount
		}
	}
	mount, _, _ := strings.Cut(path, "/")
	return mount
}

// fieldSet is what can be used of an answer.
type fieldSet struct {
	text     map[string]authz.Secret // of one line
	pem      map[string]authz.Secret
	withheld []string // names of those that cannot be used
}

// equal reports whether two answers hold the same.
func (f fieldSet) equal(o fieldSet) bool {
	return sameFields(f.text, o.text) && sameFields(f.pem, o.pem)
}

// fieldsOf returns the fields of an answer that can be injected, those that
// are PEM documents, and the names of those that are neither: they hold a
// control byte, which would end a header, or nothing. Numbers and booleans are
// taken as they are written in JSON; of lists, those of PEM documents are one
// document; other lists and objects are no fields. The fields of KV version 2
// are those of the secret and not the envelope (Vault API, "KV secrets engine,
// version 2").
func fieldsOf(answer *api.Secret, trim bool) (fieldSet, error) {
	if answer == nil || answer.Data == nil {
		return fieldSet{}, errors.New("the answer has no fields")
	}
	data := answer.Data
	if isEnvelope(data) {
		inner, isObject := data["data"].(map[string]any)
		if !isObject {
			return fieldSet{}, errors.New("this version of the secret is deleted")
		}
		data = inner
	}
	f := fieldSet{text: make(map[string]authz.Secret, len(data))}
	for name, value := range data {
		f.add(name, value, trim)
	}
	slices.Sort(f.withheld)
	switch {
	case len(f.text)+len(f.pem) > 0:
		return f, nil
	case len(f.withheld) > 0:
		return fieldSet{}, fmt.Errorf("field %q is empty or holds a control byte (a line break at its end?)", f.withheld[0])
	}
	return fieldSet{}, errors.New("the answer has no fields that are text")
}

func isEnvelope(data map[string]any) bool {
	metadata, ok := data["metadata"].(map[string]any)
	return ok && metadata["version"] != nil
}

func (f *fieldSet) add(name string, value any, trim bool) {
	text, ok := scalar(value)
	if !ok {
		return
	}
	if isPEM(text) {
		if f.pem == nil {
			f.pem = make(map[string]authz.Secret)
		}
		f.pem[name] = authz.NewSecret(text)
		return
	}
	if trim {
		text = strings.TrimSuffix(text, "\n")
	}
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		f.withheld = append(f.withheld, name)
		return
	}
	f.text[name] = authz.NewSecret(text)
}

// isPEM reports whether text is PEM documents and nothing else (RFC 7468).
func isPEM(text string) bool {
	if !strings.HasPrefix(text, "-----BEGIN ") ||
		strings.ContainsFunc(text, func(r rune) bool { return (r < ' ' && r != '\n' && r != '\r') || r >= 0x7f }) {
		return false
	}
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return false
		}
		if len(strings.TrimSpace(string(rest))) == 0 {
			return true
		}
	}
}
