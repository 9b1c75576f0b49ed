package grantcheck_test

import (
	"encoding/base64"
	"encoding/json"
	"testing"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// TestTallyCosigned: where two of a role sign an approval together, an author is not one of them.
func TestTallyCosigned(t *testing.T) {
	keys := map[string]dsse.PrivateKey{}
	var specs []dsse.KeySpec
	for _, identity := range []string{"dev", "bo", "cy"} {
		k, err := dsse.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		keys[identity] = k
		specs = append(specs, dsse.KeySpec{Identity: identity, Ed25519: base64.StdEncoding.EncodeToString(k.Public())})
	}
	root, err := dsse.NewRoot(dsse.RootSpec{Name: "corp", Version: 1, Roles: []dsse.RoleSpec{
		{Name: dsse.RoleRoot, Kinds: []dsse.Kind{dsse.KindTrust}, Keys: specs},
		{Name: "security", Threshold: 2, Kinds: []dsse.Kind{dsse.KindApproval}, Keys: specs},
	}})
	if err != nil {
		t.Fatal(err)
	}
	request := grantcheck.Request{Submission: digest("submission"), Grant: digest("grant"), Band: "low", Authors: []string{"dev"}}
	for name, test := range map[string]struct {
		decision grantcheck.Decision
		signers  []string
		counts   bool
	}{
		"two others":           {grantcheck.DecisionApprove, []string{"bo", "cy"}, true},
		"one":                  {grantcheck.DecisionApprove, []string{"bo"}, false},
		"one and the author":   {grantcheck.DecisionApprove, []string{"bo", "dev"}, false},
		"two and the author":   {grantcheck.DecisionApprove, []string{"bo", "dev", "cy"}, true},
		"a rejection of these": {grantcheck.DecisionReject, []string{"bo", "dev"}, true},
	} {
		payload, err := json.Marshal(grantcheck.Approval{
			Role: "security", Identity: "bo", Decision: test.decision, Submission: request.Submission, Grant: request.Grant, Band: "low", IssuedAt: now(),
		})
		if err != nil {
			t.Fatal(err)
		}
		var signers []dsse.Signer
		for _, identity := range test.signers {
			signers = append(signers, keys[identity])
		}
		e, err := dsse.Sign(t.Context(), dsse.KindApproval, payload, signers...)
		if err != nil {
			t.Fatal(err)
		}
		count := grantcheck.Tally(root, []*dsse.Envelope{e}, request, []grantcheck.RoleMin{{Role: "security"}}, now())
		if got := len(count.Valid)+len(count.Rejected) > 0; got != test.counts {
			t.Errorf("%s: counts is %t (%+v), want %t", name, got, count.Void, test.counts)
		}
	}
}
