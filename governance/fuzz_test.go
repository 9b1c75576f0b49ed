package governance

import (
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// FuzzParseCredentials: nothing but sources of credentials is read, whatever a file does to
// the frame around it.
func FuzzParseCredentials(f *testing.F) {
	for _, text := range []string{
		"credentials:\n- name: k\n  vault: {path: secret/data/k}\n  inject: {header: Authorization, value: \"Bearer {key}\"}\n",
		"credentials: []\n", "", "rules: []\n", "notAfter: 2027-01-01T00:00:00Z\n", "\n---\nkind: x\n", "- a\n", "\"\n", "\t\n", "# only a comment\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := ParseCredentials(FileCredentials, data)
		if err != nil {
			return
		}
		for name, c := range all {
			if name == "" || c.Name != name || c.Vault.Path == "" {
				t.Errorf("%q was read as %+v", data, c)
			}
		}
	})
}

// FuzzVerifyFile: bytes without a signature of the trust root verify as no document.
func FuzzVerifyFile(f *testing.F) {
	base := newFixture(f)
	good := map[string]bool{}
	for name := range signedFiles() {
		f.Add(base.files[name].Data)
		good[dsse.Digest(base.payload(name))] = true
	}
	r, err := Open(base.files)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := r.VerifyFile(data, time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC))
		if err == nil && !good[v.Digest] {
			t.Errorf("%q verifies as %s", data, v.Kind)
		}
	})
}
