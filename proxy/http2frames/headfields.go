package http2frames

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// headFields are the fields of a header block, of which no more are kept than a
// head may have.
type headFields struct {
	most   uint32 // bytes, as size
	fields []hpack.HeaderField
	size   uint32 // as RFC 9113, section 6.5.2, counts it
	large  bool
}

// begin has the decoder put the fields of the next block here.
func (f *headFields) begin(decoder *hpack.Decoder) {
	*f = headFields{most: f.most}
	decoder.SetEmitEnabled(true)
	decoder.SetEmitFunc(func(field hpack.HeaderField) {
		if f.size += field.Size(); f.size > f.most {
			f.large = true
			decoder.SetEmitEnabled(false)
			return
		}
		f.fields = append(f.fields, field)
	})
}

// malformed returns why the fields are no head of a request (RFC 9113, sections
// 8.1.1 to 8.3.1 and 8.5), or "". ended: no body follows.
func (f *headFields) malformed(ended bool) (detail string) {
	if f.large {
		return "the request's header is too large"
	}
	pseudo, regular := map[string]string{}, false
	lengths := []string(nil)
	for _, field := range f.fields {
		name, value := field.Name, field.Value
		switch {
		case !httpguts.ValidHeaderFieldValue(value) || strings.Trim(value, " \t") != value && strings.HasPrefix(name, ":"):
			return "the value of a field is not valid"
		case strings.HasPrefix(name, ":"):
			if _, twice := pseudo[name]; twice || regular {
				return "a pseudo-header field is repeated, or follows a field"
			}
			pseudo[name] = value
			continue
		case !httpguts.ValidHeaderFieldName(name) || strings.ToLower(name) != name:
			return "the name of a field is not valid, or not in lower case"
		case name == "connection", name == "proxy-connection", name == "keep-alive", name == "transfer-encoding", name == "upgrade",
			name == "te" && value != "trailers":
			return "the field " + name + " belongs to HTTP/1.1"
		case name == "content-length":
			lengths = append(lengths, value)
		}
		regular = true
	}
	if reason := malformedTarget(pseudo); reason != "" {
		return reason
	}
	return malformedLength(lengths, ended)
}

// malformedTarget returns why the pseudo-header fields name no target, or "".
func malformedTarget(pseudo map[string]string) string {
	for name := range pseudo {
		if name != ":method" && name != ":scheme" && name != ":authority" && name != ":path" {
			return "a pseudo-header field does not belong in a request"
		}
	}
	if strings.Contains(pseudo[":authority"], "@") {
		return ":authority names a user"
	}
	method, path := pseudo[":method"], pseudo[":path"]
	_, hasScheme := pseudo[":scheme"]
	_, hasPath := pseudo[":path"]
	if method == http.MethodConnect {
		if hasScheme || hasPath || pseudo[":authority"] == "" {
			return "CONNECT has :authority alone"
		}
		return ""
	}
	if _, err := url.ParseRequestURI(path); err != nil {
		return ":path is not the target of a request"
	}
	if scheme := pseudo[":scheme"]; scheme != "http" && scheme != "https" {
		return ":scheme is neither http nor https"
	}
	if !httpguts.ValidHeaderFieldName(method) {
		return ":method is not valid"
	}
	return ""
}

// malformedLength returns why the fields named content-length state no length of
// a body, or "".
func malformedLength(lengths []string, ended bool) string {
	for _, length := range lengths {
		n, err := strconv.ParseUint(length, 10, 63)
		if err != nil || length != lengths[0] || strings.TrimLeft(length, "0123456789") != "" {
			return "content-length is not a length"
		}
		if ended && n != 0 {
			return "content-length states a body, and none follows"
		}
	}
	return ""
}

// refused returns a head that net/http makes a request of, in place of one that is
// malformed: with what of it can be shown in a refusal.
func (f *headFields) refused(scheme, authority string) []hpack.HeaderField {
	method, path, kind := http.MethodGet, "/", ""
	for _, field := range f.fields {
		switch field.Name {
		case ":method":
			if httpguts.ValidHeaderFieldName(field.Value) && field.Value != http.MethodConnect && len(field.Value) <= 64 {
				method = field.Value
			}
		case ":path":
			if _, err := url.ParseRequestURI(field.Value); err == nil && httpguts.ValidHeaderFieldValue(field.Value) {
				path = field.Value
			}
		case "content-type":
			if strings.HasPrefix(strings.ToLower(field.Value), "application/grpc") && httpguts.ValidHeaderFieldValue(field.Value) {
				kind = field.Value // the refusal is then a gRPC status
			}
		}
	}
	fields := []hpack.HeaderField{
		{Name: ":method", Value: method},
		{Name: ":scheme", Value: scheme},
		{Name: ":authority", Value: authority},
		{Name: ":path", Value: path},
	}
	if kind != "" {
		fields = append(fields, hpack.HeaderField{Name: "content-type", Value: kind})
	}
	return fields
}
