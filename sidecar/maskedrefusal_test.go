package sidecar

import (
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
)

func TestMaskRefusal(t *testing.T) {
	mask := func(segment string) string { return "~" + string(segment[0]) }
	got := maskRefusal(authz.Refusal{
		URL: "https://a.example:8443/v1/s%65cret/x/", Detail: "weather may GET https://a.example/v1/*, not /v1/secret/x/",
		Remedy: "ask for paths: [/v1/s%65cret/x/]",
	}, mask)
	want := authz.Refusal{
		URL: "https://a.example:8443/~v/~s/~x/", Detail: "weather may GET https://a.example/v1/*, not /v1/~s/x/", Remedy: "ask for paths: [/v1/~s/x/]",
	}
	if got.URL != want.URL || got.Detail != want.Detail || got.Remedy != want.Remedy {
		t.Errorf("masked %+v", got)
	}
	for _, url := range []string{"https://a.example", "https://a.example/", "unix:/run/x.sock", "to the proxy"} {
		if got := maskRefusal(authz.Refusal{URL: url}, mask); got.URL != url {
			t.Errorf("%s is masked as %s", url, got.URL)
		}
	}
}
