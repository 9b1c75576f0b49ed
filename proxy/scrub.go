package proxy

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/httpclean"
	"github.com/chaperone-proxy/chaperone/proxy/scrub"
)

// scrubber searches one answer.
type scrubber struct {
	needles *scrub.Patterns
	names   *scrub.Patterns     // the same in lower case
	window  *scrub.WidenedRange // the part that the plugin asked for, when it is a part
	mu      sync.Mutex
	where   string // where a needle was found first, "" for nowhere
}

// found records where a needle was.
func (s *scrubber) found(where string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.where == "" {
		s.where = where
	}
}

// search returns the search that redacts the credential.
func (s *scrubber) search(where string) scrub.Search {
	return scrub.Search{Patterns: s.needles, Found: func([]byte) error { s.found(where); return nil }}
}

// ask changes a request so that its answer can be searched: the answer must not be
// compressed, nor be a range that begins or ends inside a credential.
func (s *scrubber) ask(method string, h http.Header) {
	wanted := h["Range"]
	for name := range h {
		for _, asked := range [...]string{"Accept-Encoding", "Grpc-Accept-Encoding", "Range", "A-IM"} {
			if httpclean.SameHeader(name, asked) {
				delete(h, name)
			}
		}
	}
	h["Accept-Encoding"] = []string{"identity"}
	if method == http.MethodGet && len(wanted) == 1 { // no other method has ranges (RFC 9110, section 14.2)
		if s.window = scrub.NewWidenedRange(wanted[0], s.needles.Longest()-1); s.window != nil {
			h["Range"] = []string{s.window.Header()}
		}
	}
}

// scrubHeader redacts the credential in the values of a header or trailer. A header with
// the credential in its name is removed, because a name of asterisks has no meaning.
func (x *exchange) scrubHeader(h http.Header) {
	if x.scrub == nil {
		return
	}
	for name, values := range h {
		if x.quotedIn(name) {
			delete(h, name)
			continue
		}
		for i, value := range values {
			if x.scrub.needles.In(value) {
				b := []byte(value)
				x.scrub.needles.Blank(b)
				values[i] = string(b)
				x.scrub.found("its header " + strings.ToLower(name))
			}
		}
	}
}

// quotedIn reports whether the name of an answer's header holds the credential, and
// records that without the name. Case is ignored: net/http canonicalises names, and
// HTTP/2 has lower case only.
func (x *exchange) quotedIn(name string) bool {
	if x.scrub == nil {
		return false
	}
	var short [64]byte // most names are as short, and ASCII
	lowered := short[:0]
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		lowered = append(lowered, c)
	}
	if !x.scrub.names.InBytes(lowered) && !x.scrub.needles.In(name) && !x.scrub.needles.InBytes(lowered) {
		return false
	}
	x.scrub.found("a header's name")
	return true
}

// Answers that cannot be searched.
var (
	errUnasked = errors.New("the upstream returned a range that was not requested")
	errCoded   = errors.New("the upstream returned a content coding that was not requested and cannot be searched for the credential")
)

// scrubBody returns the answer's body with the credential redacted, and changes the
// answer's head if the body was changed. A body that is neither text nor similar
// passes unchanged and without delay.
func (x *exchange) scrubBody(response *http.Response) (io.Reader, error) {
	if x.scrub == nil {
		return response.Body, nil
	}
	h := response.Header
	encoding := strings.Join(h["Content-Encoding"], ",")
	partial := response.StatusCode == http.StatusPartialContent
	if partial && (x.scrub.window == nil || len(h["Content-Range"]) != 1 || scrub.Encoded(encoding)) {
		return nil, errUnasked
	}
	body, err := x.scrub.body(response, encoding, x.decoderMemory())
	if err != nil {
		return nil, err
	}
	if partial {
		return x.scrub.cut(response, body)
	}
	return body, nil
}

// body returns the body of an answer, searched as its type requires.
func (s *scrubber) body(response *http.Response, encoding string, room scrub.MemoryBudget) (io.Reader, error) {
	if scrub.Codings(encoding) > 1 { // no coding was requested: a server may ignore that for one, not for several
		return nil, errCoded
	}
	if size := scrub.DecoderSize(encoding); size > 0 {
		if err := room.Take(size); err != nil {
			return nil, err
		}
	}
	search := s.search("its body")
	search.Memory = room
	search.LengthKnown = response.ContentLength >= 0
	body, kind := io.Reader(response.Body), contentOf(response.Header)
	if kind == octetContent { // the first bytes of a range do not reveal its kind
		kind = binaryContent
		if response.StatusCode == http.StatusPartialContent {
			kind = textContent
		}
	}
	if kind == binaryContent {
		if !scrub.Encoded(encoding) {
			return scrub.NewSniffingReader(body, search), nil
		}
		var begin bytes.Buffer
		decoded, err := scrub.Decode(encoding, io.TeeReader(body, &begin))
		text := err == nil && beginsAsText(decoded)
		if body = io.MultiReader(&begin, body); !text {
			return scrub.NewSniffingReader(body, search), nil // it may be no coding either
		}
	}
	decoded, err := scrub.Decode(encoding, body)
	if err != nil {
		return nil, errCoded
	}
	if scrub.Encoded(encoding) {
		recoded(response)
	}
	if kind == grpcContent {
		if body, err = scrub.NewGRPC(decoded, search, response.Header.Get("Grpc-Encoding")); err != nil {
			return nil, errCoded
		}
		return body, nil
	}
	return scrub.NewReader(decoded, search), nil
}

// beginsAsText reports whether a compressed body of another declared type is text.
// This is rare, because no coding was requested. A body that cannot be decompressed is
// not text.
func beginsAsText(decoded io.Reader) bool {
	var begin [512]byte
	n, _ := io.ReadAtLeast(decoded, begin[:], 1)
	return n > 0 && scrub.IsText(begin[:n])
}

// cut cuts the wider part that was asked for to the one that the plugin wants.
func (s *scrubber) cut(response *http.Response, body io.Reader) (io.Reader, error) {
	part, err := s.window.Part(response.Header.Get("Content-Range"))
	if err != nil {
		return nil, errUnasked
	}
	response.ContentLength = part.Length
	response.Header["Content-Range"] = []string{part.ContentRange}
	response.Header["Content-Length"] = []string{strconv.FormatInt(part.Length, 10)}
	if part.Length == 0 {
		response.StatusCode = http.StatusRequestedRangeNotSatisfiable
		return http.NoBody, nil
	}
	return part.Cut(body), nil
}

// recoded changes the head of an answer whose content coding was removed: fields about
// its bytes are no longer true (RFC 9110, section 7.7).
func recoded(response *http.Response) {
	h := response.Header
	for _, name := range []string{
		"Content-Encoding", "Content-Length", "Content-Md5", "Digest", "Content-Digest", "Repr-Digest", "Accept-Ranges",
	} {
		delete(h, name)
	}
	if tag := h.Get("Etag"); tag != "" && !strings.HasPrefix(tag, "W/") {
		h["Etag"] = []string{"W/" + tag}
	}
	response.ContentLength = -1
}

// content is how a body is searched.
type content uint8

const (
	textContent   content = iota // and everything that is not known
	binaryContent                // it is not, unless it begins as text
	octetContent                 // so, but where it is a part
	grpcContent                  // message by message
)

// contentOf returns how a body is searched. Text and formats that
// contain plain text are searched; sound, pictures and archives are not. A body of an
// ambiguous type, such as octets, is judged by its beginning; so is a declared
// picture, because an upstream may let the plugin choose the type.
func contentOf(h http.Header) content {
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || len(h["Content-Type"]) > 1 { // it may be anything, also text
		return textContent
	}
	family, sub, _ := strings.Cut(kind, "/")
	switch {
	case strings.HasSuffix(sub, "+xml"), strings.HasSuffix(sub, "+json"):
		return textContent
	case family == "image", family == "audio", family == "video", family == "font":
		return binaryContent
	case family != "application":
		return textContent
	case strings.HasPrefix(sub, "grpc-web-text"): // messages in base64, all the way
		return textContent
	case sub == "grpc", strings.HasPrefix(sub, "grpc+"), sub == "grpc-web", strings.HasPrefix(sub, "grpc-web+"):
		return grpcContent
	}
	switch sub {
	case "octet-stream":
		return octetContent
	case "zip", "gzip", "x-gzip", "zstd", "x-tar", "x-bzip2", "x-xz", "x-7z-compressed", "pdf", "wasm", "java-archive":
		return binaryContent
	}
	return textContent
}

// echoed reports a credential that came back.
func (x *exchange) echoed() {
	if x.scrub == nil || x.scrub.where == "" || x.proxy.cfg.Event == nil {
		return
	}
	a, d := x.admission, x.admission.Request.Destination
	x.proxy.cfg.Event(&authz.Record{
		Time: x.proxy.cfg.Now(), Kind: authz.KindEcho, Plugin: string(a.Request.Principal), Door: authz.DoorProxy,
		Decision: a.ID, Grant: a.Decision.Grant, Rule: a.Decision.Rule, Generation: a.Decision.Generation,
		Credential: a.Decision.Credential, Method: a.Request.Action.Method, Scheme: string(d.Scheme()),
		Host: d.Host(), Port: d.Port(), PID: a.Source.PID, UID: a.Source.UID, Exe: a.Source.Exe,
		Detail: "the upstream returned the credential in " + x.scrub.where + "; it was redacted",
	})
}
