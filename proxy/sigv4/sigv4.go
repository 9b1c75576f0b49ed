// Package sigv4 signs requests to AWS again, with a key that the plugin does not
// have (AWS, Signature Version 4 signing process), in place of the signature of the
// plugin's SDK.
package sigv4

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// MaxBody is how long a body may be that has to be read before it is signed,
// in bytes: every service but S3 wants the body's digest in the signature.
const MaxBody = 16 << 20

const (
	hashHeader     = "X-Amz-Content-Sha256"
	unsigned       = "UNSIGNED-PAYLOAD"
	unsignedChunks = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

// Errors that the plugin's author can mend.
var (
	// ErrChunks is for a body in chunks that the plugin signed one by one, with a
	// placeholder key.
	ErrChunks = errors.New("the body is in signed chunks (aws-chunked); configure the SDK to send it unsigned or whole over TLS")
	// ErrBody is for a body longer than [MaxBody].
	ErrBody = errors.New("the body is too long to be signed")
	// ErrQuery is for a query that could be read in two ways.
	ErrQuery = errors.New("the query holds a plus or a semicolon, which AWS and others read differently; escape it")
	// ErrExceedsRule is for a request that does more than its path shows.
	ErrExceedsRule = errors.New("reaches beyond the path, which is all that a rule bounds")
)

// Key is what signs. Session is empty for a key that lasts.
type Key struct {
	ID              string
	Secret, Session authz.Secret
}

// Scope is what a signature is for: as in "s3" and "eu-west-1".
type Scope struct {
	Service, Region string
}

// Request is the part of a request that is signed.
type Request struct {
	Method string
	Scheme string // https, or http
	Host   string // the Host header
	Path   string // as it goes on the wire, escaped
	Query  string // as it goes on the wire, without the question mark and what [StripQuery] removes
	Header http.Header
	Body   io.Reader // nil for none
	Length int64     // of Body; -1 when it is not known
}

// Sign signs a request: Header then holds Authorization, X-Amz-Date, the session's
// token and, where the service wants it or the plugin sent a right one,
// X-Amz-Content-Sha256. It returns the body to send,
// which is the request's unless it had to be read. The error is one of the
// package's, or of reading the body.
func Sign(ctx context.Context, r *Request, scope Scope, key Key, now time.Time) (io.Reader, error) {
	if what := exceedsRule(r, scope); what != "" {
		return nil, fmt.Errorf("%s %w", what, ErrExceedsRule)
	}
	if strings.ContainsAny(r.Query, "+;") {
		return nil, ErrQuery
	}
	as := serviceOf(scope.Service)
	digest, body, err := payload(r, as)
	if err != nil {
		return nil, err
	}
	stripSignature(r.Header)
	if as.hashed || r.Header.Get(hashHeader) == digest {
		r.Header.Set(hashHeader, digest)
	} else {
		r.Header.Del(hashHeader)
	}
	signed, err := canonical(ctx, r, as)
	if err != nil {
		return nil, err
	}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = as.escapesOnce })
	credentials := aws.Credentials{AccessKeyID: key.ID, SecretAccessKey: key.Secret.Reveal(), SessionToken: key.Session.Reveal()}
	if err := signer.SignHTTP(ctx, credentials, signed, digest, scope.Service, scope.Region, now.UTC()); err != nil {
		return nil, fmt.Errorf("sign request: %w", err)
	}
	for _, name := range []string{"Authorization", "X-Amz-Date", "X-Amz-Security-Token"} {
		if value := signed.Header.Get(name); value != "" {
			r.Header.Set(name, value)
		}
	}
	return body, nil
}

// service is how a service of AWS wants its requests signed.
type service struct {
	escapesOnce  bool // its paths are escaped once in what is signed, the others' twice
	hashed       bool // it wants the header x-amz-content-sha256
	trustsDigest bool // it takes a body unsigned, or by the digest that the plugin gives
	unsigned     bool // it takes no other body than an unsigned one
}

// serviceOf returns how a service, by its name in the scope of a signature, wants
// its requests signed: as the endpoint rules of AWS's SDKs say for those of S3
// (disableDoubleEncoding), and as the user guides of OpenSearch Serverless (aoss)
// and VPC Lattice say for those.
func serviceOf(name string) service {
	switch name {
	case "s3", "s3express", "s3-outposts", "s3-object-lambda":
		return service{escapesOnce: true, hashed: true, trustsDigest: true}
	case "aoss":
		return service{hashed: true}
	case "vpc-lattice-svcs":
		return service{hashed: true, unsigned: true}
	}
	return service{}
}

// payload returns what stands for the body in the signature.
func payload(r *Request, as service) (digest string, body io.Reader, err error) {
	sent, secure := r.Header.Get(hashHeader), r.Scheme == "https"
	switch {
	case strings.HasPrefix(sent, "STREAMING-") && (sent != unsignedChunks || !as.trustsDigest):
		return "", nil, ErrChunks
	case as.unsigned:
		return unsigned, r.Body, nil
	case as.trustsDigest && (sent == unsignedChunks || isDigest(sent)): // a wrong digest is AWS's to refuse
		return sent, r.Body, nil
	case secure && (as.trustsDigest || sent == unsigned):
		return unsigned, r.Body, nil
	}
	return readForDigest(r)
}

// readForDigest reads the body for its digest.
func readForDigest(r *Request) (string, io.Reader, error) {
	if r.Body == nil || r.Length == 0 {
		return digestOf(nil), r.Body, nil
	}
	if r.Length > MaxBody {
		return "", nil, ErrBody
	}
	sum := sha256.New()
	chunks, length, err := budget.ReadAll(io.TeeReader(r.Body, sum), MaxBody)
	if err != nil {
		return "", nil, fmt.Errorf("read body: %w", err)
	}
	if length > MaxBody {
		return "", nil, ErrBody
	}
	r.Length = length
	return hex.EncodeToString(sum.Sum(nil)), &chunks, nil
}

func digestOf(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

func isDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size
}

// Replaces reports whether a header, by its canonical name, is of the plugin's
// own signature, which [Sign] removes.
func Replaces(name string) bool {
	switch name {
	case "Authorization", "X-Amz-Date", "Date", "X-Amz-Security-Token", "X-Amz-S3session-Token", "X-Amz-Signature", "X-Amz-Region-Set":
		return true
	}
	return false
}

// stripSignature removes the plugin's own signature.
func stripSignature(h http.Header) {
	for name := range h {
		if Replaces(name) {
			delete(h, name)
		}
	}
}

// StripQuery removes the signature of a presigned URL from a query, of version 4
// or of version 2, whose Expires is a name that others use too.
func StripQuery(query string) string {
	signedByV2 := false
	for pair := range strings.SplitSeq(query, "&") {
		signedByV2 = signedByV2 || parameter(pair) == "awsaccesskeyid"
	}
	var kept []string
	for pair := range strings.SplitSeq(query, "&") {
		switch name := parameter(pair); name {
		case "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-expires", "x-amz-signedheaders", "x-amz-signature",
			"x-amz-security-token", "x-amz-s3session-token", "x-amz-region-set", "awsaccesskeyid", "signature":
		default:
			if name != "expires" || !signedByV2 {
				kept = append(kept, pair)
			}
		}
	}
	return strings.Join(kept, "&")
}

// parameter returns the name of a query parameter, in lower case.
func parameter(pair string) string {
	name, _, _ := strings.Cut(pair, "=")
	if plain, err := url.QueryUnescape(name); err == nil {
		name = plain
	}
	return strings.ToLower(name)
}

// canonical returns a request of what is signed, and nothing that may still
// change on its way.
func canonical(ctx context.Context, r *Request, as service) (*http.Request, error) {
	u := &url.URL{Scheme: r.Scheme, Host: r.Host, Path: r.Path, RawPath: r.Path, RawQuery: r.Query}
	plain, err := url.PathUnescape(r.Path)
	if err != nil {
		return nil, fmt.Errorf("sign request: read path: %w", err)
	}
	u.Path = plain
	if as.escapesOnce {
		u.RawPath = escapeOnce(plain)
	}
	out, err := http.NewRequestWithContext(ctx, r.Method, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("sign request: %w", err)
	}
	out.URL, out.Host = u, r.Host
	for name, values := range r.Header {
		lower := strings.ToLower(name)
		if strings.HasPrefix(lower, "x-amz-") || lower == "content-type" || lower == "content-md5" || lower == "range" {
			out.Header[name] = values
		}
	}
	return out, nil
}

// escapeOnce escapes a path as S3 does: everything but unreserved characters
// and the slash.
func escapeOnce(path string) string {
	var b strings.Builder
	for i := range len(path) {
		switch c := path[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~/", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
