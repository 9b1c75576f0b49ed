package authz

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// Refusal is the answer of every door to an access that is denied: one body, one
// set of headers.
type Refusal struct {
	Reason     Reason
	Detail     string // the access that was denied, and the closest one that is granted
	Plugin     string
	Decision   string // the decision's id
	Method     string // "" for a tunnel
	URL        string // canonical, without the query
	Nearest    *Nearest
	Remedy     string        // the change to ask for
	RetryAfter time.Duration // 0 for none

	pattern string // of the nearest rule's paths, for masking
}

// Nearest is the rule that came closest to granting the access.
type Nearest struct {
	Grant   string   `json:"grant"`
	Rule    string   `json:"rule"`
	Differs []string `json:"differs"` // the fields of the rule that do not match: method, path, port, ...
}

// Header names that only refusals carry.
const (
	HeaderReason   = "x-chaperone-reason"
	HeaderDecision = "x-chaperone-decision"
	// RefusalContentType is the media type of the body (RFC 9457).
	RefusalContentType = "application/problem+json"
)

const typePrefix = "https://chaperone.dev/reasons/"

// Status returns the HTTP status of the refusal.
func (r Refusal) Status() int { return r.Reason.Status() }

// RetrySeconds returns the value of the Retry-After header, rounded up, or ""
// for none (RFC 9110, section 10.2.3).
func (r Refusal) RetrySeconds() string {
	if r.RetryAfter <= 0 {
		return ""
	}
	seconds := r.RetryAfter / time.Second
	if r.RetryAfter%time.Second > 0 {
		seconds++
	}
	return strconv.FormatInt(int64(seconds), 10)
}

// Body returns the refusal as problem details (RFC 9457), ending in a newline.
func (r Refusal) Body() []byte {
	type request struct {
		Method string `json:"method,omitempty"`
		URL    string `json:"url,omitempty"`
	}
	var body strings.Builder
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	// Strings, integers and slices of strings always encode.
	_ = encoder.Encode(struct {
		Type     string   `json:"type"`
		Title    string   `json:"title"`
		Status   int      `json:"status"`
		Detail   string   `json:"detail,omitempty"`
		Plugin   string   `json:"plugin,omitempty"`
		Decision string   `json:"decision"`
		Request  request  `json:"request,omitzero"`
		Nearest  *Nearest `json:"nearest,omitempty"`
		Remedy   string   `json:"remedy,omitempty"`
	}{
		typePrefix + r.Reason.String(), r.Reason.Title(), r.Status(), r.Detail, r.Plugin, r.Decision,
		request{r.Method, r.URL},
		r.Nearest, r.Remedy,
	})
	return []byte(body.String())
}

// Line returns the refusal on one line, for terminals.
func (r Refusal) Line() string {
	line := r.Reason.String() + ": " + r.Detail
	if r.Remedy != "" {
		line += "; " + r.Remedy
	}
	return line
}
