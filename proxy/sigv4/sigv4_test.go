package sigv4

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// The examples of AWS, Signature Calculations for the Authorization Header
// (S3), and of the signing process of IAM.
func TestPublishedExamples(t *testing.T) {
	s3 := Key{ID: "AKIAIOSFODNN7EXAMPLE", Secret: authz.NewSecret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")}
	iam := Key{ID: "AKIDEXAMPLE", Secret: authz.NewSecret("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")}
	const none = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, test := range []struct {
		name      string
		request   Request
		scope     Scope
		key       Key
		at        string
		headers   string
		signature string
	}{
		{
			name: "a range of an object",
			request: Request{
				Method: "GET", Host: "examplebucket.s3.amazonaws.com", Path: "/test.txt",
				Header: http.Header{"Range": {"bytes=0-9"}, "X-Amz-Content-Sha256": {none}},
			},
			scope: Scope{"s3", "us-east-1"}, key: s3, at: "20130524T000000Z",
			headers: "host;range;x-amz-content-sha256;x-amz-date", signature: "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
		},
		{
			name: "the lifecycle of a bucket",
			request: Request{
				Method: "GET", Host: "examplebucket.s3.amazonaws.com", Path: "/", Query: "lifecycle",
				Header: http.Header{"X-Amz-Content-Sha256": {none}},
			},
			scope: Scope{"s3", "us-east-1"}, key: s3, at: "20130524T000000Z",
			headers: "host;x-amz-content-sha256;x-amz-date", signature: "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
		},
		{
			name: "a list of objects",
			request: Request{
				Method: "GET", Host: "examplebucket.s3.amazonaws.com", Path: "/", Query: "max-keys=2&prefix=J",
				Header: http.Header{"X-Amz-Content-Sha256": {none}},
			},
			scope: Scope{"s3", "us-east-1"}, key: s3, at: "20130524T000000Z",
			headers: "host;x-amz-content-sha256;x-amz-date", signature: "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
		},
		{
			name: "the users of an account",
			request: Request{
				Method: "GET", Host: "iam.amazonaws.com", Path: "/", Query: "Action=ListUsers&Version=2010-05-08",
				Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded; charset=utf-8"}},
			},
			scope: Scope{"iam", "us-east-1"}, key: iam, at: "20150830T123600Z",
			headers: "content-type;host;x-amz-date", signature: "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			at, err := time.Parse("20060102T150405Z", test.at)
			if err != nil {
				t.Fatal(err)
			}
			r := test.request
			r.Scheme = "https"
			if _, err := Sign(t.Context(), &r, test.scope, test.key, at); err != nil {
				t.Fatal(err)
			}
			got := r.Header.Get("Authorization")
			if !strings.Contains(got, "SignedHeaders="+test.headers+",") || !strings.HasSuffix(got, "Signature="+test.signature) {
				t.Errorf("signed %s", got)
			}
			if r.Header.Get("X-Amz-Date") != test.at {
				t.Errorf("dated %s", r.Header.Get("X-Amz-Date"))
			}
		})
	}
}

var testKey = Key{ID: "ID", Secret: authz.NewSecret("secret"), Session: authz.NewSecret("session")}

func sign(t *testing.T, r *Request, service string) (io.Reader, error) {
	t.Helper()
	return Sign(t.Context(), r, Scope{service, "eu-west-1"}, testKey, time.Unix(0, 0))
}

// TestOwnSignatureGoes checks that the plugin's own signature is removed.
func TestOwnSignatureGoes(t *testing.T) {
	r := &Request{Method: "GET", Scheme: "https", Host: "h", Path: "/", Header: http.Header{
		"Authorization":        {"AWS4-HMAC-SHA256 Credential=MINE/x", "AWS4-HMAC-SHA256 Credential=MINE/y"},
		"X-Amz-Security-Token": {"mine"}, "X-Amz-Date": {"mine"}, "Date": {"mine"},
	}}
	if _, err := sign(t, r, "dynamodb"); err != nil {
		t.Fatal(err)
	}
	for name, values := range r.Header {
		if text := strings.Join(values, " "); len(values) != 1 || strings.Contains(strings.ToLower(text), "mine") {
			t.Errorf("%s: %q", name, values)
		}
	}
	if r.Header.Get("X-Amz-Security-Token") != "session" || r.Header.Get("X-Amz-Content-Sha256") != "" {
		t.Errorf("header %v", r.Header)
	}
	const presigned = "a=1&X-Amz-Credential=MINE%2Fx&x-amz-signature=1&X%2DAmz-Date=1&Signature=2&b=2"
	if got := StripQuery(presigned); got != "a=1&b=2" {
		t.Errorf("left %q", got)
	}
	for query, want := range map[string]string{
		"AWSAccessKeyId=A&Expires=1&Signature=x&versionId=2": "versionId=2", "expires=1&a=b": "expires=1&a=b", "X-Amz-S3session-Token=t": "",
	} {
		if got := StripQuery(query); got != want {
			t.Errorf("%s: left %q", query, got)
		}
	}
	if got := StripQuery(""); got != "" {
		t.Errorf("made %q", got)
	}
}

// A path is signed as the service reads it, and sent as it was decided.
func TestPaths(t *testing.T) {
	signature := func(service, path string) string {
		r := &Request{Method: "GET", Scheme: "https", Host: "h", Path: path, Header: http.Header{}}
		if _, err := sign(t, r, service); err != nil {
			t.Fatal(err)
		}
		return r.Header.Get("Authorization")
	}
	for _, service := range []string{"s3", "s3express", "s3-outposts", "s3-object-lambda"} {
		if signature(service, "/a(b)") != signature(service, "/a%28b%29") {
			t.Errorf("%s reads both paths alike", service)
		}
	}
	if signature("lambda", "/a(b)") == signature("lambda", "/a%28b%29") {
		t.Error("other services do not")
	}
}

func TestBodies(t *testing.T) {
	body := func() io.Reader { return strings.NewReader("body") }
	digest := digestOf([]byte("body"))
	for _, test := range []struct {
		name, service, scheme, sent, hash string
		body                              io.Reader
		length                            int64
		err                               error
	}{
		{name: "S3 over TLS", service: "s3", scheme: "https", hash: unsigned, body: body(), length: -1},
		{name: "S3 with a digest", service: "s3", scheme: "https", sent: digest, hash: digest, body: body(), length: 4},
		{name: "S3 without TLS", service: "s3", scheme: "http", hash: digest, body: body(), length: 4},
		{name: "S3 in plain chunks", service: "s3", scheme: "https", sent: unsignedChunks, hash: unsignedChunks, body: body(), length: 4},
		{name: "S3 in signed chunks", service: "s3", scheme: "https", sent: "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", body: body(), err: ErrChunks},
		{name: "S3 in signed chunks with a trailer", service: "s3", scheme: "https", sent: "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", body: body(), err: ErrChunks},
		{name: "another with a body", service: "sqs", scheme: "https", body: body(), length: -1},
		{name: "another in chunks", service: "sqs", scheme: "https", sent: unsignedChunks, body: body(), err: ErrChunks},
		{name: "S3 Express over TLS", service: "s3express", scheme: "https", hash: unsigned, body: body(), length: -1},
		{name: "S3 on Outposts in plain chunks", service: "s3-outposts", scheme: "https", sent: unsignedChunks, hash: unsignedChunks, body: body(), length: 4},
		{name: "S3 Object Lambda without TLS", service: "s3-object-lambda", scheme: "http", hash: digest, body: body(), length: 4},
		{name: "OpenSearch Serverless", service: "aoss", scheme: "https", hash: digest, body: body(), length: 4},
		{name: "OpenSearch Serverless, unsigned", service: "aoss", scheme: "https", sent: unsigned, hash: unsigned, body: body(), length: 4},
		{name: "VPC Lattice", service: "vpc-lattice-svcs", scheme: "https", hash: unsigned, body: body(), length: -1},
		{name: "VPC Lattice with a digest", service: "vpc-lattice-svcs", scheme: "https", sent: digest, hash: unsigned, body: body(), length: 4},
		{name: "another with the right digest", service: "es", scheme: "https", sent: digest, hash: digest, body: body(), length: 4},
		{name: "another with a wrong digest", service: "es", scheme: "https", sent: digestOf(nil), body: body(), length: 4},
		{name: "another unsigned", service: "es", scheme: "https", sent: unsigned, hash: unsigned, body: body(), length: 4},
		{name: "another unsigned without TLS", service: "es", scheme: "http", sent: unsigned, body: body(), length: 4},
		{name: "another in signed chunks", service: "es", scheme: "https", sent: "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", body: body(), err: ErrChunks},
		{name: "too long, said", service: "sqs", scheme: "https", body: body(), length: MaxBody + 1, err: ErrBody},
		{name: "too long, found", service: "sqs", scheme: "https", body: io.LimitReader(zeros{}, MaxBody+1), length: -1, err: ErrBody},
		{name: "cut short", service: "sqs", scheme: "https", body: io.MultiReader(body(), broken{}), length: -1, err: io.ErrUnexpectedEOF},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &Request{Method: "PUT", Scheme: test.scheme, Host: "h", Path: "/k", Header: http.Header{}, Body: test.body, Length: test.length}
			if test.sent != "" {
				r.Header.Set(hashHeader, test.sent)
			}
			sent, err := sign(t, r, test.service)
			if !errors.Is(err, test.err) {
				t.Fatal(err)
			}
			if err != nil {
				return
			}
			if got := r.Header.Get(hashHeader); got != test.hash {
				t.Errorf("digest %q", got)
			}
			if text, err := io.ReadAll(sent); err != nil || string(text) != "body" {
				t.Errorf("sends %q, %v", text, err)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestQueriesReadInTwoWays(t *testing.T) {
	for _, query := range []string{"a=b+c", "a=1;b=2"} {
		r := &Request{Method: "GET", Scheme: "https", Host: "h", Path: "/", Query: query, Header: http.Header{}}
		if _, err := sign(t, r, "s3"); !errors.Is(err, ErrQuery) {
			t.Errorf("%q: %v", query, err)
		}
	}
}

// TestBeyond signs nothing that does more than its path shows.
func TestBeyond(t *testing.T) {
	for _, test := range []struct {
		service, method, header, query string
		want                           string // in the error, "" for none
	}{
		{"s3", "PUT", "X-Amz-Copy-Source", "", "the header x-amz-copy-source reaches"},
		{"s3", "PUT", "X-Amz-Copy-Source-Range", "", "x-amz-copy-source"},
		{"s3", "PUT", "X-Amz-Acl", "", "x-amz-acl"},
		{"s3", "PUT", "X-Amz-Grant-Full-Control", "", "x-amz-grant"},
		{"s3express", "PUT", "X-Amz-Copy-Source", "", "x-amz-copy-source"},
		{"s3", "PUT", "", "a=1&X-Amz-Acl=public-read", "the query parameter x-amz-acl"},
		{"s3", "PUT", "", "acl", "the query parameter acl"},
		{"s3", "PUT", "", "x=1&%61cl=", "acl"},
		{"s3", "DELETE", "", "publicAccessBlock", "publicaccessblock"},
		{"s3", "POST", "", "policy=", "policy"},
		{"s3", "PUT", "X-Amz-Rename-Source", "", "the header x-amz-rename-source"},
		{"s3express", "PUT", "X-Amz-Rename-Source-If-Match", "", "x-amz-rename-source"},
		{"s3express", "GET", "", "session", "the query parameter session"},
		{"s3", "HEAD", "", "a&%53ession=", "session"},
		{"s3", "POST", "", "sessionid=1&uploads", ""},
		{"s3", "GET", "", "acl", ""},
		{"s3", "PUT", "X-Amz-Meta-Acl", "partNumber=1&uploadId=x", ""},
		{"s3", "PUT", "X-Amz-Server-Side-Encryption", "tagging", ""},
		{"sqs", "POST", "X-Amz-Acl", "acl", ""},
	} {
		r := &Request{
			Method: test.method, Scheme: "https", Host: "bucket.s3.amazonaws.com", Path: "/x", Query: test.query, Header: http.Header{},
		}
		if test.header != "" {
			r.Header.Set(test.header, "x")
		}
		_, err := Sign(t.Context(), r, Scope{Service: test.service, Region: "eu-west-1"},
			Key{ID: "AKID", Secret: authz.NewSecret("secret")}, time.Now())
		if test.want == "" {
			if err != nil {
				t.Errorf("%+v: %v", test, err)
			}
			continue
		}
		if !errors.Is(err, ErrExceedsRule) || !strings.Contains(err.Error(), test.want) || len(r.Header["Authorization"]) > 0 {
			t.Errorf("%+v: %v, signed %v", test, err, r.Header["Authorization"])
		}
	}
}
