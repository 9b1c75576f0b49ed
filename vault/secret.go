package vault

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/chaperone-proxy/chaperone/authz"
)

// The kind of a credential is recognised by the answer and not by the path, since engines
// are mounted anywhere:
//
//   - a lease (database, aws, ...) has an id and a duration of its own;
//   - a certificate (pki) ends with itself and is revoked by its serial number;
//   - a static role's password (database, ldap, ...) is replaced by Vault, in a
//     number of seconds that the answer has;
//   - a token that is made for each answer (identity, gcp, ...) says when it ends,
//     or after how long;
//   - a one-time password (totp) is good for the moment;
//   - anything else (kv) is a value, which may be another one whenever it is read.

const (
	// rotationPoll is how long a password may still be served after the moment
	// at which Vault was to replace it, while Vault is asked whether it has; half
	// of it is how often. Vault may be up to five seconds late
	// (builtin/logical/database/rotation.go: defaultQueueTickSeconds).
	rotationPoll = time.Second
	// rotationLate is how long a password is asked for after the moment at which
	// Vault was to replace it, while the answer has the old one. With a
	// rotation_schedule its ttl begins again before the password is another.
	rotationLate = 10 * time.Second
	// rotationFirst is after what time the password of a schedule is read again
	// that was read once only, since it may have been due at that very moment.
	rotationFirst = 6 * time.Second
	// oneTimePasswordLife is how long a one-time password is served. Vault does not say when it
	// ends, and verifiers take one for a while after its period.
	oneTimePasswordLife = 2 * time.Second
	// propagationDelay is how long the former credential of an engine whose new ones are
	// not known at once is served after it was replaced, while its lease allows.
	propagationDelay = 15 * time.Second
	// remintInterval bounds how often a lease is replaced that Vault has and an
	// upstream does not accept: the plugin may be who provokes that.
	remintInterval = 10 * time.Minute
	// recheckInterval bounds how often Refused asks about one credential.
	recheckInterval = 5 * time.Second
)

// leaseOf returns the lease that an answer to a request sent at issued is, old being the
// one that it replaces, or nil. Its error is why the answer cannot be used.
func (m *leaseManager) leaseOf(answer *api.Secret, s *session, ref authz.CredentialRef, issued dualTime, old *lease) (*lease, error) {
	fields, err := fieldsOf(answer, ref.TrimNewline)
	if err != nil {
		return nil, err
	}
	l := &lease{
		id: answer.LeaseID, session: s, fields: fields, renewable: answer.Renewable,
		minted: issued, granted: seconds(answer.LeaseDuration), uses: new(authz.Uses),
	}
	last := ceiling(issued, ref.Lifetime)
	serial, certificate := certificateOf(answer, fields)
	if certificate != nil {
		last = earliest(last, issued.add(certificate.NotAfter.Sub(issued.time())))
	}
	life, ends := lifeOf(answer, issued.time())
	switch {
	case l.id != "" && l.granted <= 0:
		return nil, errors.New("the lease has no duration")
	case l.id != "":
		l.propagatesLate = propagatesLate(answer, fields)
		l.window = newWindow(issued, l.granted, last, spread())
	case certificate != nil:
		l.mount = mountOf(ref.Path)
		l.id, l.renewable = l.mount+"/cert/"+serial, false
		l.granted = max(issued.until(last), 0)
		l.window = newWindow(issued, l.granted, last, spread())
	case ends && answer.Data["last_vault_rotation"] != nil:
		m.rotate(l, answer, life, issued, last, old)
	case ends:
		l.window = newWindow(issued, life, last, spread())
	case isOneTimePassword(answer, ref.Path):
		l.onDemand = true
		l.window = window{notAfter: earliest(issued.add(oneTimePasswordLife), last), refreshAt: never(), ends: never()}
	default:
		l.window = m.valueWindow(issued, l.granted, last)
	}
	return l, nil
}

// valueWindow returns the window of a value without a lease. A duration without a lease (KV
// version 1) is only a hint of how soon the value may change.
func (m *leaseManager) valueWindow(issued dualTime, hint time.Duration, last dualTime) window {
	w := newWindow(issued, m.cfg.stale, last, 0)
	again := m.cfg.refresh
	if hint > 0 {
		again = min(again, max(hint, time.Second))
	}
	w.refreshAt = earliest(w.refreshAt, issued.add(time.Duration(float64(again)*(1+spread()/10))))
	return w
}

// rotate sets the window of a password that Vault replaces in ttl. It is read
// again right then, and every so often until it has been replaced: Vault begins
// the next period first and replaces the password up to five seconds later, so
// that an answer in between has the old password and a ttl that began again.
func (m *leaseManager) rotate(l *lease, answer *api.Secret, ttl time.Duration, issued, last dualTime, old *lease) {
	l.rotated, l.rotateBy = fmt.Sprint(answer.Data["last_vault_rotation"]), issued.add(ttl)
	next, until := issued.add(max(ttl, rotationPoll/2)), rotationPoll
	if old != nil && old.rotated == l.rotated && old.fields.equal(l.fields) {
		began := !l.rotateBy.before(old.rotateBy.add(2 * time.Second)) // Vault rounds to seconds
		if due := !issued.before(old.rotateBy); due || began {
			l.lateBy = old.lateBy
			if l.lateBy == (dualTime{}) {
				l.lateBy = issued.add(rotationLate)
			}
			if issued.before(l.lateBy) {
				l.rotateBy = old.rotateBy
				next, until = issued.add(rotationPoll/2), 2*rotationPoll
			}
		}
	}
	l.window = m.valueWindow(issued, 0, last)
	l.refreshAt = earliest(l.refreshAt, next)
	if old == nil && answer.Data["rotation_schedule"] != nil {
		l.refreshAt = earliest(l.refreshAt, issued.add(rotationFirst))
	}
	l.notAfter = earliest(l.notAfter, next.add(until))
}

// isValue reports whether an answer is of a key-value engine, whose fields mean
// what their author wants: KV version 1 gives a duration without a lease, and
// version 2 an envelope. A newer Vault names the engine (mount_type).
func isValue(answer *api.Secret) bool {
	switch answer.MountType {
	case "kv", "generic", "cubbyhole":
		return true
	}
	return answer.LeaseID == "" && (answer.LeaseDuration != 0 || isEnvelope(answer))
}

// propagatesLate reports whether what a lease is of becomes known to its service some
// seconds after Vault has made it: users of AWS, Azure, MongoDB Atlas and
// directories, and keys of Google's service accounts. A session of AWS is known at
// once. An older Vault does not name the engine, and AWS's fields do.
func propagatesLate(answer *api.Secret, fields fieldSet) bool {
	_, key := fields.text["access_key"]
	_, secret := fields.text["secret_key"]
	_, token := fields.text["security_token"]
	_, session := fields.text["session_token"]
	switch answer.MountType {
	case "azure", "mongodbatlas", "ldap", "openldap", "ad", "gcp":
		return true
	case "aws", "":
		return key && secret && !token && !session
	}
	return false
}

// isOneTimePassword reports whether an answer is a one-time password of the TOTP engine's.
func isOneTimePassword(answer *api.Secret, path string) bool {
	if answer.MountType != "" {
		return answer.MountType == "totp"
	}
	_, ok := answer.Data["code"].(string)
	return ok && len(answer.Data) == 1 && strings.Contains(path, "/code/") && !isValue(answer)
}

// lifeOf returns how long what an answer without a lease holds lives: the shortest of its
// fields, as seconds or as a moment (ttl of the identity engine and of static roles,
// token_ttl and expires_at_seconds of GCP's, expires_at of others). A moment that has
// passed is not taken from who states a duration too: the clocks differ.
func lifeOf(answer *api.Secret, now time.Time) (life time.Duration, ends bool) {
	if answer.LeaseID != "" || isValue(answer) {
		return 0, false
	}
	rotates := answer.Data["last_vault_rotation"] != nil
	for _, name := range []string{"ttl", "token_ttl", "expires_in"} {
		d, ok := durationOf(answer.Data[name])
		if ok && (d > 0 || rotates) && (!ends || d < life) {
			life, ends = d, true
		}
	}
	stated := ends
	for _, name := range []string{"expires_at_seconds", "expires_at", "expire_time", "expiration", "expires", "expiry"} {
		at, ok := momentOf(answer.Data[name])
		if !ok || rotates {
			continue
		}
		d := at.Sub(now)
		if stated && d <= 0 || ends && d >= life {
			continue
		}
		life, ends = max(d, 0), true
	}
	return life, ends
}

// durationOf reads a duration: seconds as a number or a text, or as Go writes
// one, as in 1h.
func durationOf(value any) (time.Duration, bool) {
	const longest = 10 * 365 * 24 * 3600
	number, ok := numberOf(value)
	if text, isText := value.(string); !ok && isText {
		d, err := time.ParseDuration(text)
		number, ok = d.Seconds(), err == nil
	}
	if !ok {
		return 0, false
	}
	return time.Duration(max(0, min(number, longest)) * float64(time.Second)), true
}

// momentOf reads a moment: seconds since 1970 as a number or a text, milliseconds
// where seconds would be thousands of years, or as RFC 3339 writes one.
func momentOf(value any) (time.Time, bool) {
	const farthest = 1e11
	if number, ok := numberOf(value); ok {
		if number > farthest {
			number /= 1000
		}
		return time.Unix(int64(number), 0), number > 0 && number < farthest
	}
	text, _ := value.(string)
	at, err := time.Parse(time.RFC3339, text)
	return at, err == nil && at.Year() > 1
}

func numberOf(value any) (number float64, ok bool) {
	switch v := value.(type) {
	case json.Number:
		parsed, err := v.Float64()
		number, ok = parsed, err == nil
	case string:
		parsed, err := strconv.ParseFloat(v, 64)
		number, ok = parsed, err == nil
	}
	return number, ok && !math.IsNaN(number) && !math.IsInf(number, 0)
}

// certificateOf returns the certificate of an answer of a PKI engine's, nil for another
// answer, and the serial number that it is revoked by.
func certificateOf(answer *api.Secret, fields fieldSet) (serial string, certificate *x509.Certificate) {
	serial, _ = answer.Data["serial_number"].(string)
	if serial == "" || isEnvelope(answer) {
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
	text            map[string]authz.Secret // of one line
	pem             map[string]authz.Secret
	unsendableNames []string          // names of those that hold what cannot be sent
	unusable        map[string]string // by name: why a field is neither text nor PEM
	countsDown      bool              // a field holds the time left, and differs in each answer
}

// equal reports whether two answers hold the same.
func (f fieldSet) equal(o fieldSet) bool {
	if f.countsDown && o.countsDown {
		f.text, o.text = maps.Clone(f.text), maps.Clone(o.text)
		for _, name := range []string{"ttl", "token_ttl", "expires_in"} {
			delete(f.text, name)
			delete(o.text, name)
		}
	}
	return sameFields(f.text, o.text) && sameFields(f.pem, o.pem)
}

// Bounds of the fields inside of objects that are fields.
const (
	maxNested = 256 // of one answer
	maxDepth  = 4
)

// fieldsOf returns the fields of an answer that can be injected, those that
// are PEM documents, and the names of those that are neither: they hold a
// control byte, which would end a header, or nothing. Numbers and booleans are
// taken as they are written in JSON; of lists, those of PEM documents are one
// document; a field of an object is called by both names with a dot between them,
// unless a field is called so. The fields of KV version 2 are those of the secret
// and not the envelope (Vault API, "KV secrets engine, version 2").
func fieldsOf(answer *api.Secret, trim bool) (fieldSet, error) {
	if answer == nil || answer.Data == nil {
		return fieldSet{}, errors.New("the answer has no fields")
	}
	data := answer.Data
	if isEnvelope(answer) {
		inner, isObject := data["data"].(map[string]any)
		if !isObject {
			return fieldSet{}, errors.New("this version of the secret is deleted")
		}
		data = inner
	}
	f := fieldSet{text: make(map[string]authz.Secret, len(data)), unusable: make(map[string]string), countsDown: !isValue(answer)}
	for name, value := range data {
		f.add(name, value, trim)
	}
	room := maxNested
	for _, name := range slices.Sorted(maps.Keys(data)) {
		if object, ok := data[name].(map[string]any); ok {
			f.addNested(name, object, trim, 1, &room)
		}
	}
	slices.Sort(f.unsendableNames)
	switch {
	case len(f.text)+len(f.pem) > 0:
		return f, nil
	case len(f.unsendableNames) > 0:
		return fieldSet{}, fmt.Errorf("field %q is empty or holds a control byte (a line break at its end?)", f.unsendableNames[0])
	}
	return fieldSet{}, errors.New("the answer has no fields that are text")
}

// addNested adds the fields of an object.
func (f *fieldSet) addNested(prefix string, object map[string]any, trim bool, depth int, room *int) {
	for _, key := range slices.Sorted(maps.Keys(object)) {
		name := prefix + "." + key
		if *room--; *room < 0 {
			return
		}
		_, isText := f.text[name]
		_, isPEM := f.pem[name]
		if isText || isPEM || f.unusable[name] != "" {
			continue // a field of this very name comes first
		}
		f.add(name, object[key], trim)
		if inner, ok := object[key].(map[string]any); ok && depth < maxDepth {
			f.addNested(name, inner, trim, depth+1, room)
		}
	}
}

// isEnvelope reports whether an answer is the envelope of KV version 2. A secret
// of version 1 may have fields of these names, and comes with a duration.
func isEnvelope(answer *api.Secret) bool {
	metadata, ok := answer.Data["metadata"].(map[string]any)
	_, hasData := answer.Data["data"]
	return ok && hasData && metadata["version"] != nil && answer.LeaseDuration == 0 && answer.LeaseID == "" &&
		(answer.MountType == "" || answer.MountType == "kv")
}

func (f *fieldSet) add(name string, value any, trim bool) {
	text, ok := scalar(value)
	if !ok {
		f.unusable[name] = kindOf(value)
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
		if cut, ok := strings.CutSuffix(text, "\n"); ok {
			text = strings.TrimSuffix(cut, "\r")
		}
	}
	if why := unsendable(text); why != "" {
		f.unsendableNames = append(f.unsendableNames, name)
		f.unusable[name] = why
		return
	}
	f.text[name] = authz.NewSecret(text)
}

// kindOf describes a value that is not a text.
func kindOf(value any) string {
	switch v := value.(type) {
	case nil:
		return "is null"
	case map[string]any:
		return "is an object; name one of its fields, with a dot between"
	case []any:
		return fmt.Sprintf("is a list of %d", len(v))
	}
	return "is no text"
}

// unsendable returns why a text cannot be in a header, "" when it can.
func unsendable(text string) string {
	isControl := func(r rune) bool { return r < 0x20 || r == 0x7f }
	trimmed := strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	switch {
	case text == "":
		return "is empty"
	case !strings.ContainsFunc(text, isControl):
		return ""
	case trimmed != "" && trimmed != text && strings.HasSuffix(text, "\n") && !strings.ContainsFunc(trimmed, isControl):
		return "ends with a line break; write trimNewline: true"
	}
	return "holds a control byte"
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
