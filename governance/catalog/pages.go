package catalog

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

//go:embed pages
var pages embed.FS

// Files renders the catalogue: catalog.json, index.html, style.css and NAME.html for each
// plugin, by name. The pages have no script, load nothing from elsewhere, and escape all
// that authors wrote.
func (c *Catalog) Files() (map[string][]byte, error) {
	t, err := template.New("").Funcs(template.FuncMap{
		"page": PluginPage, "day": day, "join": text, "classes": classes, "newest": newest,
		"web": func(s string) bool { return strings.HasPrefix(s, "https://") },
	}).ParseFS(pages, "pages/*.html")
	if err != nil {
		return nil, fmt.Errorf("render catalogue: %w", err)
	}
	out := map[string][]byte{}
	render := func(name, page string, data any) error {
		var b bytes.Buffer
		err := t.ExecuteTemplate(printable.NewWriter(&b), page, data)
		out[name] = b.Bytes()
		return err
	}
	if err := render("index.html", "index.html", c); err != nil {
		return nil, fmt.Errorf("render catalogue: %w", err)
	}
	for i := range c.Plugins {
		if !authz.IsName(c.Plugins[i].Name) {
			continue // a folder of another name is described in the catalogue alone
		}
		if err := render(PluginPage(c.Plugins[i].Name), "plugin.html", &c.Plugins[i]); err != nil {
			return nil, fmt.Errorf("render catalogue: %w", err)
		}
	}
	if out["style.css"], err = pages.ReadFile("pages/style.css"); err != nil {
		return nil, fmt.Errorf("render catalogue: %w", err)
	}
	list, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("render catalogue: %w", err)
	}
	out["catalog.json"] = append(printable.JSON(list), '\n')
	return out, nil
}

// PluginPage returns the name of a plugin's page. No plugin is called index, since its
// page would replace that of the catalogue: it gets a trailing underscore, which no name of a
// plugin has.
func PluginPage(name string) string {
	if name == "index" {
		name += "_"
	}
	return name + ".html"
}

func day(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(time.DateOnly)
}

func classes(all []authz.DataClass) string {
	out := make([]string, len(all))
	for i, c := range all {
		out[i] = string(c)
	}
	return text(out)
}

// text joins values for a page.
func text(values []string) string { return strings.Join(values, ", ") }

// newest returns the newest version, nil without one.
func newest(p Plugin) *Version {
	if len(p.Versions) == 0 {
		return nil
	}
	return &p.Versions[0]
}
