package manifest

import (
	"fmt"
	"slices"
	"strings"
)

// Format is a foreign format that [Import] reads.
type Format string

// The formats.
const (
	// FormatForge is the manifest.yml of an Atlassian Forge app.
	FormatForge Format = "forge"
	// FormatDeno is a deno.json or deno.jsonc: the set of permissions default, or the flags of tasks.
	FormatDeno Format = "deno"
	// FormatMCP is the server.json of the MCP registry.
	FormatMCP Format = "mcp"
	// FormatOpenAPI is an OpenAPI description 3.0 or 3.1 of an API that the plugin uses.
	FormatOpenAPI Format = "openapi"
	// FormatGrafana is the plugin.json of a Grafana plugin.
	FormatGrafana Format = "grafana"
)

// Formats returns every format, sorted.
func Formats() []Format {
	return []Format{FormatDeno, FormatForge, FormatGrafana, FormatMCP, FormatOpenAPI}
}

// Import makes a draft of a manifest from a foreign file. The draft asks for what the file
// states and for nothing wider; everything else becomes a [Todo]. Values that may be
// secrets are not copied. source names the file in messages and comments.
func Import(format Format, source string, data []byte) (*Draft, error) {
	if !slices.Contains(Formats(), format) {
		return nil, fmt.Errorf("import %s: %s is not a format; write one of %v", source, quote(string(format)), Formats())
	}
	root, err := parseTree(source, data)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", format, err)
	}
	d := newDraft(source)
	read := map[Format]func(*Draft, *node) error{
		FormatForge: importForge, FormatDeno: importDeno, FormatMCP: importMCP, FormatOpenAPI: importOpenAPI, FormatGrafana: importGrafana,
	}[format]
	if err := read(d, root); err != nil {
		return nil, fmt.Errorf("import %s: %s: %w", format, source, err)
	}
	if d.Name == "" {
		d.Name = "plugin"
		d.todo(root, "states no name of the plugin; write metadata.name")
	}
	return d, nil
}

// describe takes the version and purpose of a source, if they may stand in a manifest.
func (d *Draft) describe(version, purpose *node) {
	if _, err := parseVersion(version.str()); err == nil {
		d.Spec.Version = version.str()
	} else if version.exists() {
		d.todo(version, "%s is not a semantic version; write spec.version", quote(version.text))
	}
	if text := sourceText(purpose.str()); text != "" {
		d.Spec.Purpose = text
	}
}

// --- Atlassian Forge: developer.atlassian.com/platform/forge/manifest-reference/permissions

func importForge(d *Draft, root *node) error {
	permissions := root.get("permissions")
	if !permissions.exists() && !root.get("app").exists() {
		return fmt.Errorf("has neither app nor permissions; name the manifest.yml of a Forge app")
	}
	d.Name = name(root.get("app", "name").str())
	remotes := map[string]*node{}
	for _, r := range root.get("remotes").items {
		remotes[r.get("key").str()] = r.get("baseUrl")
	}
	external := permissions.get("external")
	for _, entry := range external.get("fetch", "backend").items {
		address := entry
		if entry.kind == mapKind {
			address = entry.get("address")
			if key := entry.get("remote"); key.exists() {
				if address = remotes[key.str()]; address == nil {
					d.todo(key, "%s is not one of remotes; name the host", quote(key.str()))
					continue
				}
			}
		}
		forgeHost(d, address)
	}
	for _, f := range external.fields {
		list := f.value
		if f.name == "fetch" {
			list = f.value.get("client")
		}
		for _, entry := range list.items {
			address := entry.str()
			if entry.kind == mapKind {
				address = entry.get("address").str()
			}
			d.todo(entry, "%s is loaded by the browser and not by the plugin; add a permission only if the plugin accesses it too", quote(address))
		}
	}
	forgeScopes(d, permissions.get("scopes"))
	return nil
}

// forgeHost adds a host that the backend of an app fetches from. The manifest of Forge states no methods
// and no paths.
func forgeHost(d *Draft, address *node) {
	e, err := parseEndpoint(address.str())
	if err != nil {
		d.todo(address, "%s %v", quote(address.str()), err)
		return
	}
	id := d.permit(e.label(), authzRule(e))
	d.todo(address, "states no methods and paths; write those of permission %s", id)
	if strings.HasPrefix(e.to.Hosts[0], "*.") {
		d.comment(id, "Forge's wildcard holds any number of labels, *. holds one; write the hosts, or **. for more labels.")
	}
}

// forgeScopes lists the scopes of Atlassian's own APIs, which have no hosts of their own.
func forgeScopes(d *Draft, scopes *node) {
	for _, s := range scopes.items {
		d.todo(s, "the scope %s is for an API of the host; write the hosts, methods and paths that the plugin uses under it", quote(s.str()))
	}
	for _, f := range scopes.fields {
		d.todo(f.value, "the scope %s is for an API of the host; write the hosts, methods and paths that the plugin uses under it", quote(f.name))
	}
}
