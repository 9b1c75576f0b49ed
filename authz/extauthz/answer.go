package extauthz

import (
	"math"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
)

// answer is a CheckResponse before it is encoded. The zero answer denies.
type answer struct {
	verdict  verdict
	code     codes.Code // of a refusal; OK is sent as PermissionDenied
	message  string     // of a refusal
	status   int        // of a refusal
	body     string     // of a refusal
	headers  []header   // set in the allowed request, or in the refusal
	remove   []string   // removed from the allowed request
	metadata dynamicMetadata
}

// verdict is the kind of an answer.
type verdict uint8

const (
	denied  verdict = iota
	failed          // denied because of an error inside the sidecar
	allowed         //
)

// dynamicMetadata is set under envoy.filters.http.ext_authz, for access logs and route
// matching. Empty fields are left out.
type dynamicMetadata struct {
	decision, plugin, reason, grant, rule, scheme string
	generation                                    uint64
}

// Fields of the answer, as in wire.go. The numbers are from external_auth.proto
// and envoy/config/core/v3/base.proto, and for the types of protobuf and Google from
// google/rpc/status.proto and google/protobuf/struct.proto.
const (
	double = uint64(protowire.Fixed64Type)

	responseStatus   = 1<<3 | text
	responseDenied   = 2<<3 | text
	responseOK       = 3<<3 | text
	responseMetadata = 4<<3 | text
	responseError    = 5<<3 | text

	statusCode    = 1<<3 | number
	statusMessage = 2<<3 | text

	refusalStatus  = 1<<3 | text
	refusalHeaders = 2<<3 | text
	refusalBody    = 3<<3 | text

	okHeaders         = 2<<3 | text
	okHeadersToRemove = 5<<3 | text

	optionHeader       = 1<<3 | text
	optionAppend       = 2<<3 | text
	optionAppendAction = 3<<3 | number
	overwrite          = 2 // HeaderAppendAction: OVERWRITE_IF_EXISTS_OR_ADD

	structFields = 1<<3 | text
	entryKey     = 1<<3 | text
	entryValue   = 2<<3 | text
	valueNumber  = 2<<3 | double
	valueString  = 3<<3 | text
)

// typicalAnswer is the length of most answers without their bodies.
const typicalAnswer = 640

// encode returns the answer in wire format. A CheckResponse without a status
// allows, so encode always writes one, and it is 0 for an allowing answer only.
func (a *answer) encode() []byte {
	w := writer(make([]byte, 0, typicalAnswer+len(a.body)))
	status := w.open(responseStatus)
	if a.verdict != allowed {
		code := a.code
		if code == codes.OK {
			code = codes.PermissionDenied
		}
		w.number(statusCode, uint64(code))
		w.text(statusMessage, a.message)
	}
	w.close(status)
	switch a.verdict {
	case allowed:
		w.ok(a)
	case failed:
		w.refusal(responseError, a)
	case denied:
		w.refusal(responseDenied, a)
	}
	w.metadata(&a.metadata)
	return w
}

// writer appends the fields of messages.
type writer []byte

// open begins a field that is a message, and returns its position.
func (w *writer) open(tag uint64) int {
	*w = append(protowire.AppendVarint(*w, tag), 0)
	return len(*w)
}

// close ends a message by inserting its length before it, for which open reserved
// one byte.
func (w *writer) close(at int) {
	size := len(*w) - at
	if more := protowire.SizeVarint(uint64(size)) - 1; more > 0 {
		*w = append(*w, make([]byte, more)...)
		copy((*w)[at+more:], (*w)[at:])
	}
	protowire.AppendVarint((*w)[:at-1], uint64(size))
}

func (w *writer) number(tag, value uint64) {
	*w = protowire.AppendVarint(protowire.AppendVarint(*w, tag), value)
}

// text writes a string as valid UTF-8, without which the caller could not decode it.
// It leaves out an empty one.
func (w *writer) text(tag uint64, value string) {
	if value != "" {
		*w = protowire.AppendString(protowire.AppendVarint(*w, tag), strings.ToValidUTF8(value, "\uFFFD"))
	}
}

func (w *writer) ok(a *answer) {
	at := w.open(responseOK)
	for _, h := range a.headers {
		w.set(okHeaders, h)
	}
	for _, name := range a.remove {
		w.text(okHeadersToRemove, name)
	}
	w.close(at)
}

func (w *writer) refusal(tag uint64, a *answer) {
	at := w.open(tag)
	status := w.open(refusalStatus)
	w.number(statusCode, uint64(a.status))
	w.close(status)
	for _, h := range a.headers {
		w.set(refusalHeaders, h)
	}
	w.text(refusalBody, a.body)
	w.close(at)
}

// set writes a header that replaces any existing one. It writes both append and
// append_action: an older Envoy reads append alone, and a newer one that finds append
// unset reads append_action, whose zero value appends a second header beside the
// plugin's own.
func (w *writer) set(tag uint64, h header) {
	option := w.open(tag)
	at := w.open(optionHeader)
	w.text(headerKey, h.name)
	w.text(headerValue, h.value)
	w.close(at)
	w.close(w.open(optionAppend)) // a BoolValue false
	w.number(optionAppendAction, overwrite)
	w.close(option)
}

func (w *writer) metadata(f *dynamicMetadata) {
	at := w.open(responseMetadata)
	for _, fact := range [...]header{
		{"decision", f.decision},
		{"plugin", f.plugin},
		{"reason", f.reason},
		{"grant", f.grant},
		{"rule", f.rule},
		{"scheme", f.scheme},
	} {
		if fact.value != "" {
			w.metadataField(fact.name, func() { w.text(valueString, fact.value) })
		}
	}
	if f.generation != 0 {
		w.metadataField("generation", func() {
			*w = protowire.AppendFixed64(protowire.AppendVarint(*w, valueNumber), math.Float64bits(float64(f.generation)))
		})
	}
	w.close(at)
}

func (w *writer) metadataField(name string, value func()) {
	entry := w.open(structFields)
	w.text(entryKey, name)
	at := w.open(entryValue)
	value()
	w.close(at)
	w.close(entry)
}
