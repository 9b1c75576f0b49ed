package manifest

import (
	"errors"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

// importMCP reads a server.json of the MCP registry
// (static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json). The plugin is the server, if the file names
// a package, and what uses the remote server otherwise.
func importMCP(d *Draft, root *node) error {
	if !root.get("packages").exists() && !root.get("remotes").exists() {
		return errors.New("has neither packages nor remotes; name a server.json of the MCP registry")
	}
	full := root.get("name").str() // as in io.github.owner/server
	vendor, short, ok := strings.Cut(full, "/")
	if !ok {
		short, vendor = full, ""
	}
	d.Name = name(short)
	d.describe(root.get("version"), root.get("description"))
	if labels := strings.Split(vendor, "."); len(labels) > 1 && refused(authz.Rule{To: authz.To{Hosts: []string{strings.ToLower(vendor)}}, Methods: []string{"GET"}, Paths: []string{"/"}}) == "" {
		for i, j := 0, len(labels)-1; i < j; i, j = i+1, j-1 {
			labels[i], labels[j] = labels[j], labels[i]
		}
		d.Spec.Vendor = strings.Join(labels, ".")
	}
	for i, p := range root.get("packages").items {
		mcpPackage(d, p, i == 0)
	}
	for _, r := range root.get("remotes").items {
		mcpRemote(d, r)
	}
	return nil
}

// mcpPackage takes the artifact and the credentials of a package. The file states nothing of the hosts
// that a package accesses.
func mcpPackage(d *Draft, p *node, first bool) {
	if first {
		mcpArtifact(d, p)
	} else {
		d.todo(p, "a plugin has one artifact; this package is another one")
	}
	d.todo(p, "states no hosts that the package accesses; record them with chaperone run --config FILE in mode observe, then chaperonectl plugin init --log")
	for _, v := range p.get("environmentVariables").items {
		mcpInput(d, v, configs.CredentialBearer)
	}
	for _, arguments := range []string{"runtimeArguments", "packageArguments"} {
		for _, a := range p.get(arguments).items {
			if mcpSecret(a) {
				d.todo(a, "is a secret on the command line, where others of the host read it; name a credential, which is injected into requests")
			}
		}
	}
	if u := p.get("transport", "url"); u.exists() {
		d.todo(u, "is where the server listens; state it in process.listen of the Sidecar, not in a manifest")
	}
}

// mcpArtifact takes the package URL (ECMA-427) and, of a file, the digest.
func mcpArtifact(d *Draft, p *node) {
	id, version := p.get("identifier").str(), p.get("version").str()
	kind := map[string]string{"npm": "npm", "pypi": "pypi", "nuget": "nuget", "oci": "oci"}[p.get("registryType").str()]
	if kind == "oci" {
		d.Spec.Artifact.Kind = grantcheck.ArtifactImage
		if _, digest, ok := strings.Cut(id, "@"); ok && isDigest(digest) {
			d.Spec.Artifact.Digest = digest
		}
	}
	if sum := "sha256:" + p.get("fileSha256").str(); isDigest(sum) {
		d.Spec.Artifact.Digest = sum
	}
	plain := func(s string) bool {
		return s != "" && len(s) <= maxText && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`?#%"\`, r) })
	}
	if kind != "" && kind != "oci" && plain(id) && plain(version) {
		d.Spec.Artifact.PURL = "pkg:" + kind + "/" + strings.ReplaceAll(id, "@", "%40") + "@" + version
	}
}

// mcpSecret reports whether an input, or a variable that is put into it, is a secret.
func mcpSecret(v *node) bool {
	if v.get("isSecret").isTrue() {
		return true
	}
	for _, f := range v.get("variables").fields {
		if f.value.get("isSecret").isTrue() {
			return true
		}
	}
	return false
}

// mcpInput takes a secret input as a credential. Its value and default are not read.
func mcpInput(d *Draft, v *node, kind configs.CredentialKind) string {
	variable := v.get("name").str()
	if !mcpSecret(v) {
		if looksSecret(variable) {
			d.todo(v, "%s is not marked as a secret, and has the name of one; name a credential if it is", quote(variable))
		}
		return ""
	}
	id := d.credential(variable, kind, v.get("description").str())
	if kind == configs.CredentialBearer {
		d.todo(v, "states neither where the secret is sent nor how; check the kind of credential %s, and name it in a permission", id)
	}
	return id
}

// mcpRemote adds the endpoint of a remote server. Streamable HTTP uses POST, GET and DELETE of one
// path (modelcontextprotocol.io/specification, transports).
func mcpRemote(d *Draft, r *node) {
	address := r.get("url")
	e, err := parseEndpoint(address.str())
	if err != nil {
		d.todo(address, "%s %v", quote(address.str()), err)
		return
	}
	rule := authzRule(e)
	if e.path == "" {
		e.path = "/"
	}
	rule.Paths = []string{e.path}
	rule.Methods = []string{"GET", "POST", "DELETE"}
	if r.get("type").str() != "streamable-http" {
		rule.Methods = []string{"GET"}
	}
	if why := refused(rule); why != "" {
		d.todo(address, "%s", why)
		return
	}
	for _, h := range r.get("headers").items {
		id := mcpInput(d, h, configs.CredentialHeader)
		switch {
		case id != "" && rule.Credential != "":
			d.todo(h, "is a second credential of one remote; a permission has one")
		case id != "" && rule.To.Scheme == authz.SchemeHTTP:
			d.todo(h, "would be sent without TLS; ask the server for https")
		case id != "":
			rule.Credential = id
		}
	}
	id := d.permit(e.label(), rule)
	if r.get("type").str() != "streamable-http" {
		d.todo(r.get("type"), "the endpoint for messages is announced by the server at run time; add its path to permission %s", id)
	}
}

// isDigest reports whether a text is sha256: and 64 hexadecimal digits.
func isDigest(s string) bool {
	digits, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(digits) == len(noDigest)-len("sha256:") && strings.Trim(digits, "0123456789abcdef") == ""
}
