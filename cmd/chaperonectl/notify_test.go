package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"mime"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/printable"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestNotify delivers a signed notice as a CloudEvent, and refuses what a webhook of an
// author must not reach.
func TestNotify(t *testing.T) {
	key := testenv.MustGet(dsse.GenerateKey())(t)
	payload := []byte(`{"event":"rollback","plugin":"weather","issuedAt":"2026-12-01T12:00:00Z"}`)
	notice := testenv.MustGet(dsse.Sign(t.Context(), dsse.KindNotice, payload, key))(t)
	var got []byte
	var contentType string
	var received, busy, cut int
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		received++
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/hook", http.StatusTemporaryRedirect)
		case "/fails":
			w.WriteHeader(http.StatusInternalServerError)
		case "/gone":
			w.WriteHeader(http.StatusGone)
		case "/busy":
			if busy++; busy < 3 {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(http.StatusTooManyRequests)
			}
		case "/cut":
			if cut++; cut < 2 {
				panic(http.ErrAbortHandler)
			}
		default:
			contentType = r.Header.Get("Content-Type")
			got = make([]byte, r.ContentLength)
			_, _ = r.Body.Read(got)
		}
	}))
	ca := testenv.MustGet(testenv.NewCA("notify"))(t)
	server.TLS = tlsOf(t, ca)
	server.StartTLS()
	defer server.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	testenv.Must(t, ca.WriteFile(file))
	t.Setenv("SSL_CERT_FILE", file)
	t.Setenv("SSL_CERT_DIR", t.TempDir())

	loopback := []string{"127.0.0.0/8"}
	tests := map[string]struct {
		url     string
		allowed []string
		want    string // of the error; "" for none
	}{
		"delivered":           {server.URL + "/hook", loopback, ""},
		"not a public one":    {server.URL + "/hook", nil, "is not a public address; allow it with --notify-address"},
		"redirect":            {server.URL + "/moved", loopback, "answered 307"},
		"failure":             {server.URL + "/fails", loopback, "answered 500; send the notice again: chaperonectl plugin notify plugins/weather/1.0.0 --contact hook"},
		"gone":                {server.URL + "/gone", loopback, "answered 410"},
		"busy":                {server.URL + "/busy", loopback, ""},
		"cut":                 {server.URL + "/cut", loopback, ""},
		"not https":           {strings.Replace(server.URL, "https", "http", 1), loopback, "not an https URL"},
		"with a user":         {strings.Replace(server.URL, "https://", "https://a:b@", 1), loopback, "not an https URL"},
		"a file":              {"file:///etc/passwd", loopback, "not an https URL"},
		"metadata":            {"https://169.254.169.254/", loopback, "is not a public address"},
		"metadata mapped":     {"https://[::ffff:169.254.169.254]/", loopback, "is not a public address"},
		"shared":              {"https://100.100.100.200/", loopback, "is not a public address"},
		"this network":        {"https://0.1.2.3/", loopback, "is not a public address"},
		"metadata by NAT64":   {"https://[64:ff9b::a9fe:a9fe]/", loopback, "is not a public address"},
		"metadata by 6to4":    {"https://[2002:a9fe:a9fe::1]/", loopback, "is not a public address"},
		"site-local":          {"https://[fec0::1]/", loopback, "is not a public address"},
		"range that is wrong": {server.URL, []string{"10.0.0.1"}, "is not a range"},
	}
	for name, test := range tests {
		c := &cli{stdout: printable.NewWriter(&strings.Builder{}), clock: time.Now}
		contacts := []configs.Contact{{Name: "by mail", Email: "a@b.example"}, {Name: "hook", Webhook: test.url}}
		err := c.notify(t.Context(), &governance.Request{Dir: "plugins/weather/1.0.0"}, contacts, "rollback", notice, &notifyFlags{addresses: test.allowed, wait: time.Millisecond})
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		}
		if exit, is := errors.AsType[command.ExitError](err); err != nil && (!is || exit.Status != exitNotInformed || strings.Contains(err.Error(), "/hook")) {
			t.Errorf("%s: error is %#v, want status %d without the URL", name, err, exitNotInformed)
		}
	}
	// One each for what is delivered, moved and gone, four for what fails, three for what is busy
	// and two for what is cut.
	if received != 12 {
		t.Errorf("the server received %d requests, want 12", received)
	}
	var event cloudEvent
	testenv.Must(t, json.Unmarshal(got, &event))
	if event.SpecVersion != "1.0" || event.Type != "dev.chaperone.plugin.rollback" || event.Subject != "weather" || event.ID != notice.Digest() || !strings.HasPrefix(contentType, "application/cloudevents+json") {
		t.Errorf("event is %+v with %s", event, contentType)
	}
	checkStructured(t, contentType, got)
	if e, err := dsse.Parse(event.Data); err != nil || e.Digest() != notice.Digest() {
		t.Errorf("data of the event is %s, %v", event.Data, err)
	}
	if err := os.Remove(file); err != nil {
		t.Error(err)
	}
}

// TestNotifyTooMany names the contacts that one call does not inform.
func TestNotifyTooMany(t *testing.T) {
	notice := testenv.MustGet(dsse.Sign(t.Context(), dsse.KindNotice, []byte(`{"plugin":"weather","issuedAt":"2026-12-01T12:00:00Z"}`), testenv.MustGet(dsse.GenerateKey())(t)))(t)
	contacts := append(make([]configs.Contact, maxContacts), configs.Contact{Name: "last", Webhook: "https://127.0.0.1:1/"})
	c := &cli{stdout: printable.NewWriter(&strings.Builder{}), clock: time.Now}
	err := c.notify(t.Context(), &governance.Request{Dir: "plugins/weather/1.0.0"}, contacts, "rollback", notice, &notifyFlags{})
	if err == nil || !strings.Contains(err.Error(), `inform "last": a call informs 20 contacts`) || !strings.Contains(err.Error(), "--contact last") {
		t.Errorf("error is %v", err)
	}
}

// checkStructured checks the rules of the structured mode: the media type (HTTP binding 3.2),
// the names of attributes (specification 3.1), those that are required, strings that are not
// empty, and data that is JSON and not a string of it (JSON format 3.1).
func checkStructured(t *testing.T, contentType string, body []byte) {
	t.Helper()
	media, parameters, err := mime.ParseMediaType(contentType)
	if err != nil || media != "application/cloudevents+json" || parameters["charset"] != "utf-8" {
		t.Errorf("Content-Type is %q, %v", contentType, err)
	}
	var members map[string]any
	testenv.Must(t, json.Unmarshal(body, &members))
	for _, required := range []string{"specversion", "id", "source", "type"} {
		if members[required] == nil {
			t.Errorf("attribute %s is missing", required)
		}
	}
	for name, value := range members {
		if text, is := value.(string); name != "data" && (!is || text == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") != "") {
			t.Errorf("attribute %q is %v", name, value)
		}
	}
	if _, is := members["data"].(map[string]any); !is || members["datacontenttype"] != "application/json" {
		t.Errorf("data is %v of %v", members["data"], members["datacontenttype"])
	}
	if source, _ := members["source"].(string); !strings.HasPrefix(source, "urn:") {
		t.Errorf("source is %q, which is not absolute", source)
	}
	if at, _ := members["time"].(string); testenv.MustGet(time.Parse(time.RFC3339, at))(t).IsZero() {
		t.Errorf("time is %q", at)
	}
}

// TestNotifyBackoff follows Retry-After up to a bound.
func TestNotifyBackoff(t *testing.T) {
	for after, want := range map[string]time.Duration{"": 2 * time.Second, "7": 7 * time.Second, "86400": notifyLongest, "-5": 2 * time.Second, "soon": 2 * time.Second, "99999999999999999999": 2 * time.Second} {
		res := &http.Response{StatusCode: http.StatusServiceUnavailable, Header: http.Header{"Retry-After": {after}}}
		if got := notifyBackoff(notifyWait, notifyLongest, 1, res); got != want {
			t.Errorf("Retry-After %q: %s, want %s", after, got, want)
		}
	}
}

func tlsOf(t *testing.T, ca *testenv.CA) *tls.Config {
	t.Helper()
	return &tls.Config{Certificates: []tls.Certificate{testenv.MustGet(ca.Issue("127.0.0.1"))(t)}, MinVersion: tls.VersionTLS13}
}
