package tokens

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tokenResponse is what a token endpoint answered with.
type tokenResponse struct {
	value string
	life  time.Duration
}

// errNoToken is an answer that holds none.
var errNoToken = errors.New("answered with what is no token")

// readToken reads the answer of a token endpoint (RFC 6749, section 5). Its errors
// hold nothing of what the endpoint wrote: an error page may quote the request,
// which has the client's secret.
//
// It takes what endpoints are known to send: a JSON object, or a form, under any
// content type and after a byte order mark; an expires_in of any spelling; any
// status of 200 to 299.
func readToken(answer *http.Response) (tokenResponse, error) {
	text, err := io.ReadAll(answer.Body)
	fields := map[string]any{}
	if err == nil {
		fields, err = fieldsOf(text)
	}
	code, _ := fields["error"].(string)
	switch {
	case answer.StatusCode < 200 || answer.StatusCode > 299, fields["error"] != nil:
		what := "answered with status " + strconv.Itoa(answer.StatusCode)
		if isKnownErrorCode(code) {
			what += " and " + code
		}
		return tokenResponse{}, errors.New(what)
	case err != nil:
		return tokenResponse{}, errNoToken
	}
	token, _ := fields["access_token"].(string)
	if token == "" {
		return tokenResponse{}, errNoToken
	}
	if !isToken(token) {
		return tokenResponse{}, errors.New("answered with a token that is too long or holds other bytes than ASCII's printable ones")
	}
	if kind := fields["token_type"]; !isBearer(kind) {
		return tokenResponse{}, errors.New("answered with a token that is no bearer token")
	}
	life, err := lifeOf(fields["expires_in"])
	return tokenResponse{token, life}, err
}

// fieldsOf reads a JSON object or a form.
func fieldsOf(text []byte) (map[string]any, error) {
	text = bytes.TrimSpace(bytes.TrimPrefix(bytes.TrimSpace(text), []byte("\ufeff")))
	fields := map[string]any{}
	if bytes.HasPrefix(text, []byte("{")) {
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		return fields, decoder.Decode(&fields)
	}
	form, err := url.ParseQuery(string(text))
	if err != nil {
		return fields, errNoToken
	}
	for name := range form {
		fields[name] = form.Get(name)
	}
	return fields, nil
}

// isToken reports whether a text is what an access token may be (RFC 6749,
// appendix A.12), and fits in a header.
func isToken(text string) bool {
	const longest = 16 << 10
	return len(text) <= longest && !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })
}

// isBearer reports whether a token_type may be used as a bearer token. Types that
// are bound to a key (mac, DPoP, pop) and unknown ones must not (RFC 6749, section
// 7.1). Some endpoints leave the type out, say JWT, or say BearerToken (Apigee).
func isBearer(kind any) bool {
	name, isText := kind.(string)
	return kind == nil || isText && slices.Contains([]string{"", "bearer", "bearertoken", "jwt"}, strings.ToLower(name))
}

// lifeOf returns how long a token lives by the expires_in of its endpoint, in seconds (RFC
// 6749, section 5.1): a number, or the text that some write. A missing one and 0 stand for
// the default.
func lifeOf(expiresIn any) (time.Duration, error) {
	text, isText := expiresIn.(string)
	number, isNumber := expiresIn.(json.Number)
	if isNumber {
		text = number.String()
	}
	text = strings.TrimSpace(text)
	if text == "" && (isText || expiresIn == nil) {
		return defaultLife, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	switch {
	case err != nil && !errors.Is(err, strconv.ErrRange), math.IsNaN(seconds):
		return 0, errors.New("answered with an expires_in that is no number")
	case seconds < 0:
		return 0, errors.New("answered with a token that has ended already")
	case seconds == 0:
		return defaultLife, nil
	}
	return time.Duration(min(seconds, longestToken.Seconds()) * float64(time.Second)), nil
}

// retryAfter returns how long a token endpoint asks to be left alone (RFC 9110,
// section 10.2.3): seconds, or a date. 0 is for none.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	wait := time.Duration(0)
	if seconds, err := strconv.Atoi(value); err == nil {
		wait = time.Duration(min(max(seconds, 0), int(maxWait.Seconds()))) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), maxWait)
}

// isKnownErrorCode reports whether an error code is one that RFCs define (RFC 6749, section
// 5.2; RFC 8707, section 2). Any other text could be a quotation of the request.
func isKnownErrorCode(code string) bool {
	return slices.Contains([]string{
		"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
		"invalid_target", "access_denied", "server_error", "temporarily_unavailable",
	}, code)
}
