package governance

import (
	"bytes"
	_ "embed"
	"fmt"
	htmltemplate "html/template"
	"strings"
	"text/template"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

//go:embed packet.md.tmpl
var packetTemplate string

// cell returns text that is written by others as one cell of a table, or one line, of
// Markdown.
func cell(text any) string { return printable.Markdown(fmt.Sprint(text)) }

// Markdown returns the packet as Markdown.
func (p *Packet) Markdown() (string, error) {
	join := func(list []string) string {
		out := make([]string, len(list))
		for i, s := range list {
			out[i] = cell(s)
		}
		return strings.Join(out, ", ")
	}
	t, err := template.New("packet").Funcs(template.FuncMap{"cell": cell, "join": join, "time": minutes, "ascii": printable.Text}).Parse(packetTemplate)
	if err != nil {
		return "", fmt.Errorf("write packet: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, p); err != nil {
		return "", fmt.Errorf("write packet: %w", err)
	}
	return out.String(), nil
}

func minutes(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z") }

const packetHTML = `<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{.Plugin}} {{.Version}}: review</title>
<style>body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}td,th{border:1px solid #999;padding:.2rem .5rem;text-align:left;vertical-align:top}pre{white-space:pre-wrap;word-break:break-all;background:#eee;padding:.5rem}</style>
</head><body>
<h1>{{.Plugin}} {{.Version}}: review</h1>
<p>{{.Purpose}}</p>
<p>Vendor {{.Vendor}}, submitted by {{join .Authors}}; artifact {{.Artifact}}. Packet of {{time .At}}.</p>
<p><strong>Risk {{.Risk.Score}} ({{.Risk.Band}})</strong>; needs {{if .Risk.Needs}}{{join .Risk.Needs}}{{else}}no approval{{end}}.</p>
<ul>{{range .Risk.Contributors}}<li>{{.Counted}} points, {{.Part}}: {{.Text}}</li>{{end}}</ul>
<h2>Asks for</h2>
<table><tr><th>permission</th><th>access</th><th>reason</th><th>credential</th><th>data</th></tr>
{{range .Permissions}}<tr><td>{{.ID}}{{if .Optional}} (optional){{end}}{{if .Dropped}} (left out: unused){{end}}</td><td>{{.Access}}{{with .Terms}} {{.}}{{end}}</td><td>{{.Reason}}</td><td>{{.Credential}}</td><td>{{.Data}}</td></tr>
{{end}}</table>
{{if .Terms}}<ul>{{range .Terms}}<li>{{.}}</li>{{end}}</ul>{{end}}
{{if .Differences}}<h2>Differences to the version in force</h2><ul>{{range .Differences}}<li>{{.}}</li>{{end}}</ul>{{end}}
<h2>Did</h2><ul>{{range .Observed}}<li>{{.}}</li>{{else}}<li>No pilot measured this version.</li>{{end}}</ul>
{{if .Exemptions}}<h2>Exemptions</h2><ul>{{range .Exemptions}}<li>{{.Name}} from {{.From}} {{.Terms}} until {{time .NotAfter}}: {{.Justification}} ({{.Owner}}, {{.Ticket}}){{range .Controls}}; {{.}}{{end}}</li>{{end}}</ul>{{end}}
{{if .Blocking}}<h2>Findings that block</h2><ul>{{range .Blocking}}<li>{{.}}</li>{{end}}</ul>{{end}}
{{if .Problems}}<h2>Still missing</h2><ul>{{range .Problems}}<li>{{.Message}}{{if .People}} ({{.Role}}: {{join .People}}){{end}}</li>{{end}}</ul>{{end}}
{{if .Findings}}<h2>Notes</h2><ul>{{range .Findings}}<li>{{.}}</li>{{end}}</ul>{{end}}
{{if .Comments}}<h2>Comments</h2><ul>{{range .Comments}}<li>{{.By}} ({{.Role}}), {{time .At}}: {{.Text}}</li>{{end}}</ul>{{end}}
{{if .Evidence}}<h2>Evidence</h2><table><tr><th>type</th><th>signed by</th><th>at</th><th>digest</th></tr>
{{range .Evidence}}<tr><td>{{.Type}}</td><td>{{join .Signed}}</td><td>{{time .IssuedAt}}</td><td>{{.Digest}}</td></tr>{{end}}</table>{{end}}
{{if .Grant.Digest}}<h2>To sign</h2><p>Generation {{.Grant.Generation}}, from {{time .Grant.NotBefore}} to {{time .Grant.NotAfter}}. An approval is of exactly these bytes, with digest</p><pre>{{.Grant.Digest}}</pre><pre>{{.Grant.Payload}}</pre>{{end}}
</body></html>
`

// HTML returns the packet as one page without scripts.
func (p *Packet) HTML() (string, error) {
	join := func(list []string) string { return strings.Join(list, ", ") }
	t, err := htmltemplate.New("packet").Funcs(htmltemplate.FuncMap{"join": join, "time": minutes}).Parse(packetHTML)
	if err != nil {
		return "", fmt.Errorf("write packet: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, p); err != nil {
		return "", fmt.Errorf("write packet: %w", err)
	}
	return out.String(), nil
}
