package catalog

import (
	"encoding/json"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// TestPagesEscape: no text of an author reaches a page, or a terminal that prints one, with
// characters that reorder, hide or overwrite what is around it.
func TestPagesEscape(t *testing.T) {
	const text = "safe \u202egnp.exe\u202c \u009b31m \u200b \U000e0041 <script>alert(1)</script>"
	c := &Catalog{Plugins: []Plugin{{Name: "weather", Versions: []Version{{Version: "1.0.0", Purpose: text, Vendor: text}}}}}
	files, err := c.Files()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		for _, c := range string(data) {
			if c != '\n' && printable.Text(string(c)) != string(c) {
				t.Errorf("%s has character %U", name, c)
			}
		}
	}
	var back Catalog
	if err := json.Unmarshal(files["catalog.json"], &back); err != nil || back.Plugins[0].Versions[0].Purpose != text {
		t.Errorf("catalog.json is read back as %+v (%v)", back.Plugins, err)
	}
}
