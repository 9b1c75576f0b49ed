package dsse

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// people are the keys of a trust root with two of three for role root and policy.
type people struct {
	ana, bo, cy, ci PrivateKey
	ana2            PrivateKey // a second key of ana
}

func newPeople(t testing.TB) people {
	return people{newKey(t), newKey(t), newKey(t), newKey(t), newKey(t)}
}

func (p people) spec() RootSpec {
	all := []KeySpec{keySpec("ana@corp", p.ana), keySpec("ana@corp", p.ana2), keySpec("bo@corp", p.bo), keySpec("cy@corp", p.cy)}
	return RootSpec{Name: "corp", Version: 1, Roles: []RoleSpec{
		{Name: RoleRoot, Threshold: 2, Kinds: []Kind{KindTrust}, Keys: slices.Clone(all)},
		{Name: "policy", Threshold: 2, Kinds: []Kind{KindGuardrail, KindGrant}, Keys: slices.Clone(all)},
		{Name: "security", Kinds: []Kind{KindApproval}, Keys: slices.Clone(all[:3])},
		{Name: "measurer", Kinds: []Kind{KindEvidence}, PredicateTypes: []string{"measured-performance"}, Keys: []KeySpec{keySpec("ci", p.ci)}},
	}}
}

func (p people) root(t testing.TB, change func(*RootSpec)) *Root {
	t.Helper()
	spec := p.spec()
	if change != nil {
		change(&spec)
	}
	root, err := NewRoot(spec)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestVerify(t *testing.T) {
	p, stranger := newPeople(t), newKey(t)
	root := p.root(t, nil)
	tests := map[string]struct {
		envelope *Envelope
		kind     Kind
		want     string // of the error; "" for none
	}{
		"two people":         {sign(t, KindGrant, "{}", p.ana, p.bo), KindGrant, ""},
		"a stranger beside":  {sign(t, KindGrant, "{}", p.ana, stranger, p.bo), KindGrant, ""},
		"one person":         {sign(t, KindGrant, "{}", p.ana), KindGrant, "1 of 2 of role policy"},
		"one person twice":   {sign(t, KindGrant, "{}", p.ana, p.ana2), KindGrant, "1 of 2 of role policy"},
		"strangers":          {sign(t, KindGrant, "{}", stranger), KindGrant, "0 of 2 of role policy"},
		"another role":       {sign(t, KindGrant, "{}", p.ana, p.ci), KindGrant, "1 of 2 of role policy"},
		"threshold of one":   {sign(t, KindApproval, "{}", p.bo), KindApproval, ""},
		"not of the role":    {sign(t, KindApproval, "{}", p.cy), KindApproval, "0 of 1 of role security"},
		"another kind":       {sign(t, KindApproval, "{}", p.ana, p.bo), KindGrant, "grant.v1+json is required"},
		"no role signs it":   {sign(t, KindHeartbeat, "{}", p.ana, p.bo), KindHeartbeat, "no role of the trust root"},
		"an unknown kind":    {sign(t, "gift", "{}", p.ana, p.bo), "gift", "not a kind"},
		"one signed nothing": {tamper(sign(t, KindGrant, "{}", p.ana, p.bo, p.cy)), KindGrant, "does not verify"},
	}
	for name, test := range tests {
		doc, err := root.Verify(test.envelope, test.kind)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		case test.want != "" && doc != nil:
			t.Errorf("%s: a refused document was returned", name)
		}
	}
}

// tamper changes the last signature.
func tamper(e *Envelope) *Envelope {
	e.Signatures[len(e.Signatures)-1].Bytes[0] ^= 1
	return e
}

func TestVerifiedDocument(t *testing.T) {
	p := newPeople(t)
	e := sign(t, KindGrant, `{"a":1}`, p.ana, p.ana2, p.bo)
	doc, err := p.root(t, nil).Verify(e, KindGrant)
	if err != nil {
		t.Fatal(err)
	}
	if got := doc.Identities("policy"); !slices.Equal(got, []string{"ana@corp", "bo@corp"}) {
		t.Errorf("identities are %v", got)
	}
	if string(doc.Payload) != `{"a":1}` || doc.Digest != "sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862" {
		t.Errorf("payload is %s with digest %s", doc.Payload, doc.Digest)
	}
	if !doc.SignedBy("bo@corp") || doc.SignedBy("cy@corp") {
		t.Errorf("signers are %v", doc.Signed)
	}
}

func TestRevokedKey(t *testing.T) {
	p := newPeople(t)
	root := p.root(t, func(s *RootSpec) { s.Revoked = []string{p.bo.Public().KeyID()} })
	_, err := root.Verify(sign(t, KindGrant, "{}", p.ana, p.bo), KindGrant)
	if err == nil || !strings.Contains(err.Error(), "revoked keys do not count: "+p.bo.Public().KeyID()) {
		t.Errorf("error is %v", err)
	}
	if _, err := root.Verify(sign(t, KindGrant, "{}", p.ana, p.bo, p.cy), KindGrant); err != nil {
		t.Errorf("two others signed as well: %v", err)
	}
}

func TestRootRefuses(t *testing.T) {
	p := newPeople(t)
	tests := map[string]struct {
		change func(*RootSpec)
		want   string
	}{
		"no name":             {func(s *RootSpec) { s.Name = "" }, "a name and a version"},
		"version 0":           {func(s *RootSpec) { s.Version = 0 }, "version 0"},
		"no root role":        {func(s *RootSpec) { s.Roles = s.Roles[1:] }, "no role root signs kind trust"},
		"trust elsewhere":     {func(s *RootSpec) { s.Roles[1].Kinds = append(s.Roles[1].Kinds, KindTrust) }, "signed by role root alone"},
		"role twice":          {func(s *RootSpec) { s.Roles[2].Name = "policy" }, "name of another role"},
		"unknown kind":        {func(s *RootSpec) { s.Roles[2].Kinds = []Kind{"gift"} }, "not a kind"},
		"no kinds":            {func(s *RootSpec) { s.Roles[2].Kinds = nil }, "at least one kind"},
		"high threshold":      {func(s *RootSpec) { s.Roles[1].Threshold = 4 }, "threshold 4, but 3 identities"},
		"negative threshold":  {func(s *RootSpec) { s.Roles[1].Threshold = -1 }, "threshold from 1"},
		"two owners":          {func(s *RootSpec) { s.Roles[1].Keys[0].Identity = "eve@corp" }, "belongs to ana@corp and to eve@corp"},
		"no owner":            {func(s *RootSpec) { s.Roles[3].Keys[0].Identity = "" }, "has no identity"},
		"look-alike owner":    {func(s *RootSpec) { s.Roles[3].Keys[0].Identity = "аna@corp" }, "has no identity"}, // Cyrillic
		"wrong id":            {func(s *RootSpec) { s.Roles[3].Keys[0].ID = "SHA256:x" }, "is not that of the key"},
		"short key":           {func(s *RootSpec) { s.Roles[3].Keys[0].Ed25519 = "AAAA" }, "not 32 bytes"},
		"revoked below":       {func(s *RootSpec) { s.Revoked = []string{p.ci.Public().KeyID()} }, "threshold 1, but 0 identities"},
		"revoked is not a id": {func(s *RootSpec) { s.Revoked = []string{""} }, "not a key id"},
		"revoked is padded":   {func(s *RootSpec) { s.Revoked = []string{p.bo.Public().KeyID() + "="} }, "not a key id"},
		"revoked in hex":      {func(s *RootSpec) { s.Revoked = []string{"sha256:" + strings.Repeat("a", 64)} }, "not a key id"},
		"owner in other case": {func(s *RootSpec) { s.Roles[3].Keys[0].Identity = "Ana@corp" }, "identities Ana@corp and ana@corp differ by case alone"},
	}
	for name, test := range tests {
		spec := p.spec()
		test.change(&spec)
		if _, err := NewRoot(spec); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		}
	}
	if _, err := ParseRoot([]byte(`{"name":"corp","version":1,"rolls":[]}`)); err == nil || !strings.Contains(err.Error(), "rolls") {
		t.Errorf("an unknown field: error is %v", err)
	}
}

func TestRotate(t *testing.T) {
	p, dee := newPeople(t), newKey(t)
	lost := newKey(t).Public().KeyID()
	old := p.root(t, func(s *RootSpec) { s.Revoked = []string{lost} })
	next := func(change func(*RootSpec)) string {
		spec := p.spec()
		spec.Version, spec.Revoked = 2, []string{lost}
		spec.Roles[0].Keys = append(spec.Roles[0].Keys[2:], keySpec("dee@corp", dee)) // bo, cy, dee
		if change != nil {
			change(&spec)
		}
		text, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	tests := map[string]struct {
		payload string
		signers []PrivateKey
		want    string
	}{
		"old and new":         {next(nil), []PrivateKey{p.ana, p.bo, p.cy}, ""},
		"by two of both":      {next(nil), []PrivateKey{p.bo, p.cy}, ""},
		"by the old alone":    {next(nil), []PrivateKey{p.ana, p.bo}, "by version 2 itself: verify trust: too few identities signed: 1 of 2"},
		"by the new alone":    {next(nil), []PrivateKey{p.bo, dee}, "by version 1: verify trust: too few identities signed: 1 of 2"},
		"same version":        {next(func(s *RootSpec) { s.Version = 1 }), []PrivateKey{p.bo, p.cy}, "its version is 1; 2 follows 1"},
		"version skipped":     {next(func(s *RootSpec) { s.Version = 3 }), []PrivateKey{p.bo, p.cy}, "its version is 3; 2 follows 1"},
		"another name":        {next(func(s *RootSpec) { s.Name = "evil" }), []PrivateKey{p.bo, p.cy}, "its name is evil"},
		"revoked key returns": {next(func(s *RootSpec) { s.Revoked = nil }), []PrivateKey{p.bo, p.cy}, "a revoked key stays revoked"},
		"not a root":          {"{}", []PrivateKey{p.bo, p.cy}, "a name and a version"},
	}
	for name, test := range tests {
		root, err := old.Rotate(sign(t, KindTrust, test.payload, test.signers...))
		switch {
		case test.want == "" && (err != nil || root.Spec().Version != 2):
			t.Errorf("%s: %v", name, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		}
	}
}

// A signature by a key that two roles list counts in both.
func TestKeyOfTwoRoles(t *testing.T) {
	p := newPeople(t)
	root := p.root(t, func(s *RootSpec) {
		s.Roles = append(s.Roles, RoleSpec{Name: "owner", Kinds: []Kind{KindApproval}, Keys: []KeySpec{keySpec("bo@corp", p.bo)}})
	})
	doc, err := root.Verify(sign(t, KindApproval, "{}", p.bo), KindApproval)
	if err != nil || len(doc.Identities("owner")) != 1 || len(doc.Identities("security")) != 1 {
		t.Errorf("document is %+v, %v", doc, err)
	}
}

func BenchmarkVerify(b *testing.B) {
	p := newPeople(b)
	root := p.root(b, nil)
	e := sign(b, KindGrant, strings.Repeat("x", 8<<10), p.ana, p.bo)
	text := e.Marshal()
	b.SetBytes(int64(base64.StdEncoding.EncodedLen(8 << 10)))
	for b.Loop() {
		parsed, err := Parse(text)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := root.Verify(parsed, KindGrant); err != nil {
			b.Fatal(err)
		}
	}
}

// TestWeakKeys: a key of small order, for which everybody can sign, and one that is not in
// canonical form is no key of a trust root.
func TestWeakKeys(t *testing.T) {
	p := newPeople(t)
	zeros, ones := strings.Repeat("00", 30), strings.Repeat("ff", 30)
	for name, text := range map[string]string{
		"neutral": "01" + zeros + "00", "neutral, negative": "01" + zeros + "80", "order 2": "ec" + ones + "7f", "order 2, negative": "ec" + ones + "ff",
		"order 4": "00" + zeros + "00", "order 4, negative": "00" + zeros + "80",
		"order 8":           "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"order 8, negative": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"order 8, other":    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"not canonical 0":   "ed" + ones + "7f", "not canonical 1": "ee" + ones + "ff", "not canonical 18": "ff" + ones + "7f",
	} {
		public, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		spec := p.spec()
		spec.Roles[0].Keys[0].Ed25519 = base64.StdEncoding.EncodeToString(public)
		if _, err := NewRoot(spec); err == nil || !strings.Contains(err.Error(), "no key of one person") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A signature for the neutral key that holds for every document.
	public, sig := make([]byte, ed25519.PublicKeySize), make([]byte, ed25519.SignatureSize)
	public[0], sig[0] = 1, 1
	if !ed25519.Verify(public, []byte("any"), sig) {
		t.Error("the neutral key is not weak here; the check is not needed any more")
	}
	for range 100 {
		if newKey(t).Public().weak() {
			t.Error("a key that was made is weak")
		}
	}
}
