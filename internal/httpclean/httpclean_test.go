package httpclean

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// TestClassify checks the class of each listed header in every spelling.
func TestClassify(t *testing.T) {
	for want, names := range map[Class][]string{
		ClassHop: {
			"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
			"Proxy-Authentication-Info", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings",
		},
		ClassOverride: {
			"X-Http-Method", "X-Http-Method-Override", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url",
			"Forwarded", "Host", "X-Forwarded-For", "X-Forwarded-" + strings.Repeat("x", 60),
		},
		ClassOwn: {"X-Chaperone-Decision", "X-Chaperone-" + strings.Repeat("x", 60)},
		ClassNone: {
			"Accept", "Authorization", "Content-Type", "Cookie", "X-Forwarded", "X-Chaperone", "Hosts", "X-Http-Methods",
			"Proxy-Authentication-Infoxxxxxxx", "Proxy-Authentication-Infoxxxxxxxx", "",
		},
	} {
		for _, name := range names {
			for _, spelling := range []string{name, strings.ToLower(name), strings.ToUpper(name), strings.ReplaceAll(name, "-", "_")} {
				if got := Classify(spelling); got != want {
					t.Errorf("%s: got class %d, want %d", spelling, got, want)
				}
			}
		}
	}
	for name, want := range map[string]Class{"Content-Length": ClassNone, "Content_Length": ClassFraming, "content_length": ClassFraming, "Ho\u017ft": ClassNone} {
		if got := Classify(name); got != want {
			t.Errorf("%s: got class %d, want %d", name, got, want)
		}
	}
}

// TestClassifyDoesNotAllocate keeps it on the path of every header.
func TestClassifyDoesNotAllocate(t *testing.T) {
	for _, name := range []string{"Proxy_Authentication_Info", "Content-Type", "x-forwarded-" + strings.Repeat("x", 100)} {
		if n := testing.AllocsPerRun(100, func() { Classify(name) }); n != 0 {
			t.Errorf("%s: got %v allocations, want none", name, n)
		}
	}
}

// TestRemovedHeaders checks that each is sorted, and of a class that does not pass.
func TestRemovedHeaders(t *testing.T) {
	names := RemovedHeaders()
	if !slices.IsSorted(names[:]) {
		t.Errorf("got %v, want them sorted", names)
	}
	for _, name := range names {
		if Classify(name) == ClassNone || FoldName(name) != name {
			t.Errorf("%s: got a header that may pass or is not folded", name)
		}
	}
}

// TestSameHeader checks which names a server may confuse.
func TestSameHeader(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"X-Api-Key", "x_api_key", true},
		{"X-Api-Key", "X-Api_KEY", true},
		{"X-Api-Key", "X-Api-Keys", false},
		{"X-Api-Key", "X.Api.Key", false},
		{"k", "\u212a", false}, // the Kelvin sign
	} {
		if got := SameHeader(test.a, test.b); got != test.want {
			t.Errorf("%s, %s: got %v, want %v", test.a, test.b, got, test.want)
		}
		if got := FoldName(test.a) == FoldName(test.b); got != test.want {
			t.Errorf("%s, %s: got folded names %q and %q", test.a, test.b, FoldName(test.a), FoldName(test.b))
		}
	}
}

// TestConnectionOptions checks which headers Connection makes hop-by-hop.
func TestConnectionOptions(t *testing.T) {
	values := []string{"close, X-Api_Key", " upgrade ,\tx-second", "a b, Content-Length, host,", "keep-alive"}
	want := []string{"x-api-key", "x-second"}
	if got := slices.Collect(ConnectionOptions(values)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if !HasToken([]string{"a, Trailers "}, "trailers") || HasToken([]string{"trailer"}, "trailers") {
		t.Error("got the wrong answer from HasToken")
	}
}

// TestWithoutCookie checks that no spelling of the slot is left and nothing else goes.
func TestWithoutCookie(t *testing.T) {
	for _, test := range []struct {
		sent []string
		want string
	}{
		{nil, ""},
		{[]string{"session=1"}, ""},
		{[]string{"a=1; session=2; b=3"}, "a=1; b=3"},
		{[]string{"a=1; SESSION=2;;  b=3 "}, "a=1; b=3"},
		{[]string{"session=1", "a=2", "session=3"}, "a=2"},
		{[]string{"a=1,session=2"}, "a=1"},
		{[]string{"session=2,a=1"}, "a=1"},
		{[]string{"a=1, session =2, b=3; c=4"}, "a=1, b=3; c=4"},
		{[]string{`a={"x":1,"y":2}; sessions=3`}, `a={"x":1,"y":2}; sessions=3`},
		{[]string{"session"}, ""},
		{[]string{`"session"=1; a=2`}, "a=2"},
	} {
		if got := WithoutCookie(test.sent, "session"); got != test.want {
			t.Errorf("%q: got %q, want %q", test.sent, got, test.want)
		}
	}
	if got, want := AddCookie("a=1", "session", "s"), "a=1; session=s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := AddCookie("", "session", "s"), "session=s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestWithoutParameter checks that no spelling of the slot is left and nothing else
// goes.
func TestWithoutParameter(t *testing.T) {
	for query, want := range map[string]string{
		"":                        "",
		"key=1":                   "",
		"a=1&key=2&b=3":           "a=1&b=3",
		"a=1&KEY=2":               "a=1",
		"%6bey=1&a=%20":           "a=%20",
		"+key+=1&a":               "a",
		"a=1;key=2&b":             "a=1&b",
		"key;a":                   "a",
		"&&a=1&":                  "a=1",
		"keys=1&ke%y=2&a=key%3D1": "keys=1&ke%y=2&a=key%3D1",
		"key":                     "",
		"key%00=1":                "key%00=1",
	} {
		if got := WithoutParameter(query, "key"); got != want {
			t.Errorf("%q: got %q, want %q", query, got, want)
		}
	}
	if got, want := AddParameter(AddParameter("", "k", "a b"), "&", "="), "k=a+b&%26=%3D"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestGRPC checks media types, statuses and messages.
func TestGRPC(t *testing.T) {
	for contentType, want := range map[string]bool{
		"application/grpc": true, "Application/GRPC+proto": true, "application/grpc; charset=x": true,
		"application/grpc-web": false, "application/json": false, "": false,
	} {
		if got := IsGRPC(contentType); got != want {
			t.Errorf("%q: got %v, want %v", contentType, got, want)
		}
	}
	for status := range 600 {
		if GRPCStatus(status) == 0 {
			t.Errorf("%d: got OK for a refusal", status)
		}
	}
	if got, want := GRPCMessage("5% é\n"), "5%25 %C3%A9%0A"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzWithoutCookie checks that a server finds no cookie of the slot, and that
// cleaning again changes nothing.
func FuzzWithoutCookie(f *testing.F) {
	f.Add("a=1; session=2,b", "session=3")
	f.Fuzz(func(t *testing.T, first, second string) {
		got := WithoutCookie([]string{first, second}, "session")
		if again := WithoutCookie([]string{got}, "session"); again != got {
			t.Errorf("got %q, then %q", got, again)
		}
		request := http.Request{Header: http.Header{"Cookie": {got}}}
		for _, cookie := range request.Cookies() {
			if strings.EqualFold(cookie.Name, "session") {
				t.Errorf("got %q, which has the cookie", got)
			}
		}
	})
}

// FuzzWithoutParameter checks that a server finds no parameter of the slot, and that
// cleaning again changes nothing.
func FuzzWithoutParameter(f *testing.F) {
	f.Add("a=1&%6bey=2;b")
	f.Fuzz(func(t *testing.T, query string) {
		got := WithoutParameter(query, "key")
		if again := WithoutParameter(got, "key"); again != got {
			t.Errorf("got %q, then %q", got, again)
		}
		values, _ := url.ParseQuery(got)
		for name := range values {
			if strings.EqualFold(name, "key") {
				t.Errorf("got %q, which has the parameter", got)
			}
		}
	})
}
