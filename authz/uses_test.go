package authz

import (
	"errors"
	"strings"
	"testing"
)

// An access counts as one that carries its credential from its admission to its
// end, and what is refused never does.
func TestUsesOfACredential(t *testing.T) {
	w := newWorld(t, input(withKey(forecast())))
	uses := &Uses{}
	w.source.credential.Uses = uses
	first, second := w.admit(t, get(t, forecastURL)), w.admit(t, get(t, forecastURL))
	if err := first.End(Outcome{}); err != nil || !uses.Open() {
		t.Fatalf("with one of two ended, open is %v, %v", uses.Open(), err)
	}
	_ = first.End(Outcome{}) // ending again counts nothing
	if !uses.Open() {
		t.Error("an access was ended twice")
	}
	if err := second.End(Outcome{}); err != nil || uses.Open() || uses.Untracked() {
		t.Errorf("with both ended, open is %v, %v", uses.Open(), err)
	}

	w.recorder.broken = errors.New("full")
	if a, err := w.gate.Admit(t.Context(), get(t, forecastURL), Source{}); err == nil || a.Refusal == nil || uses.Open() {
		t.Errorf("an unrecorded access carries it: %v", err)
	}
	w.recorder.broken = nil
	w.source.meanwhile = func() {
		w.engine.Revoke(Revocation{ID: "r1", Plugin: "weather", Level: LevelQuarantine})
	}
	if a, _ := w.gate.Admit(t.Context(), get(t, forecastURL), Source{}); a.Refusal == nil || uses.Open() {
		t.Errorf("a revoked access carries it: %+v", a.Decision)
	}
}

// Where an Envoy makes the access nobody sees its end.
func TestUsesThatAreNotSeenToEnd(t *testing.T) {
	for _, refuse := range []bool{true, false} {
		w := newWorld(t, input(withKey(forecast())))
		uses := &Uses{}
		w.source.credential.Uses = uses
		if _, err := w.gate.AdmitAndEnd(t.Context(), get(t, forecastURL), Source{Door: DoorExtAuthz}, func(a *Admission) Outcome {
			if !uses.Open() {
				t.Error("it is not counted while the answer is made")
			}
			if refuse {
				a.Refuse(NotEnforceableHere, "")
			}
			return Outcome{}
		}); err != nil {
			t.Fatal(err)
		}
		if uses.Open() || uses.Untracked() == refuse {
			t.Errorf("refused %v: open %v, hidden %v", refuse, uses.Open(), uses.Untracked())
		}
	}
	var none *Uses
	none.Begin()
	none.MarkUntracked()
	none.End()
	if none.Open() || none.Untracked() {
		t.Error("a nil Uses counts")
	}
}

// A credential that cannot be rendered is reported with the fields of Vault's answer.
func TestRendersSaysWhyNot(t *testing.T) {
	w := newWorld(t, input(withKey(forecast())))
	ref := w.engine.Current().CredentialRefs("weather", noon)[0]
	field := func(name string) map[string]Secret { return map[string]Secret{name: NewSecret("canary")} }
	many := map[string]Secret{}
	for name := range strings.SplitSeq("abcdefghijkl", "") {
		many[name] = NewSecret("canary")
	}
	for _, test := range []struct {
		name       string
		credential Credential
		says       string // "" for nothing
	}{
		{"right", Credential{Fields: field("api_key")}, ""},
		{"another field", Credential{Fields: field("k")}, "Vault's answer has no field api_key; it has k"},
		{"no field", Credential{}, "has no field api_key; it has no fields"},
		{"many fields", Credential{Fields: many}, "it has a, b, c, d, e, f, g, h and 4 more"},
		{"an odd name", Credential{Fields: field("a\x1b[2J\nb")}, `it has "a\x1b[2J\nb"`},
		{"nested", Credential{Fields: field("db.api_key"), Unusable: map[string]string{"db": "is an object"}}, "it has db, db.api_key"},
		{"a line break", Credential{Fields: field("k"), Unusable: map[string]string{"api_key": "ends with a line break; write trimNewline: true"}}, "field api_key of Vault's answer ends with a line break"},
		{"PEM", Credential{PEM: field("api_key")}, "field api_key of Vault's answer is a PEM document"},
		{"metadata", Credential{Fields: field("current_version"), Unusable: map[string]string{"versions": "is an object"}}, "write MOUNT/data/NAME"},
		{"a control byte", Credential{Fields: map[string]Secret{"api_key": NewSecret("canary\n")}}, "control byte"},
	} {
		err := w.engine.Current().Renders(ref, test.credential)
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want %q", test.name, err, test.says)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: the secret is printed: %v", test.name, err)
		}
	}
	ref.Name = "other"
	if err := w.engine.Current().Renders(ref, Credential{}); err != nil {
		t.Errorf("of one that no rule needs: %v", err)
	}
}
