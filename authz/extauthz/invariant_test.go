package extauthz

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"

	"github.com/chaperone-proxy/chaperone/internal/httpclean"
)

// checkAnswer fails when an answer breaks a rule that every answer keeps: it
// is never empty, it can be encoded, it allows or denies and not both, a header
// takes the place of another and is not removed again, and a refusal holds no
// credential.
func checkAnswer(t testing.TB, out *authv3.CheckResponse) {
	t.Helper()
	wire, err := proto.Marshal(out)
	if err != nil {
		t.Fatalf("the answer cannot be encoded: %v", err)
	}
	if out.GetStatus() == nil || out.GetHttpResponse() == nil {
		t.Fatalf("the answer is empty, which allows: %v", out)
	}
	reason := reasonOf(out)
	if ok := out.GetOkResponse(); ok != nil {
		if out.GetStatus().GetCode() != 0 || reason != "granted" && reason != "observed" {
			t.Fatalf("allows with status %d and reason %q", out.GetStatus().GetCode(), reason)
		}
		for _, h := range ok.GetHeaders() {
			checkSet(t, h)
			if slices.Contains(ok.GetHeadersToRemove(), h.GetHeader().GetKey()) {
				t.Errorf("sets and removes %s", h.GetHeader().GetKey())
			}
		}
		return
	}
	denied := out.GetDeniedResponse()
	if failed := out.GetErrorResponse(); failed != nil {
		denied = failed
	}
	if denied == nil {
		t.Fatalf("neither allows nor denies: %v", out)
	}
	if out.GetStatus().GetCode() == 0 || reason == "" || reason == "granted" || reason == "observed" {
		t.Fatalf("denies with status %d and reason %q", out.GetStatus().GetCode(), reason)
	}
	if code := denied.GetStatus().GetCode(); code < 400 || code > 599 {
		t.Errorf("denies with HTTP status %d", code)
	}
	for _, h := range denied.GetHeaders() {
		checkSet(t, h)
	}
	if strings.Contains(string(wire), canary) {
		t.Errorf("a refusal holds the credential: %v", out)
	}
}

func checkSet(t testing.TB, h *corev3.HeaderValueOption) {
	t.Helper()
	appends := h.GetAppend() //nolint:staticcheck // deprecated, and what older Envoys read
	if appends == nil || appends.GetValue() || h.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
		t.Errorf("header %s does not take the place of another: %v", h.GetHeader().GetKey(), h)
	}
	value := h.GetHeader().GetValue() + string(h.GetHeader().GetRawValue())
	if !httpclean.IsToken(strings.TrimPrefix(h.GetHeader().GetKey(), ":")) || strings.ContainsAny(value, "\r\n\x00") || value == "" || !utf8.ValidString(h.GetHeader().GetValue()) {
		t.Errorf("header %q is not one: %q", h.GetHeader().GetKey(), value)
	}
}
