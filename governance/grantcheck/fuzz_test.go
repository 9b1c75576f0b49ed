package grantcheck_test

import (
	"bytes"
	"testing"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/granttest"
)

// FuzzCheck changes the bytes of a signed grant: it is refused, or its signed payloads
// are the ones that were signed.
func FuzzCheck(f *testing.F) {
	w := granttest.New(f, now())
	b := w.Draft(digest("guardrail"), artifact()).Bundle()
	good, err := b.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	root := w.Root()
	f.Add(good)
	f.Add(bytes.Replace(good, []byte(`"approvals"`), []byte(`"Approvals"`), 1))
	f.Add([]byte(`{"payloadType":"x","payload":"","signatures":[{"keyid":"","sig":""}],"approvals":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		read, err := grantcheck.ParseBundle(data)
		if err != nil {
			return
		}
		v, err := grantcheck.Check(root, read, terms(), now())
		if err == nil && (!bytes.Equal(v.Payload, b.Grant.Unverified) || len(v.Approvals) == 0) {
			t.Errorf("it was accepted: %s", data)
		}
		again, err := read.Marshal()
		if err != nil {
			return // too large
		}
		if _, err := grantcheck.ParseBundle(again); err != nil {
			t.Errorf("it does not read back: %v", err)
		}
	})
}
