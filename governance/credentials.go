package governance

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

// credentialsFrame is a grant around the field credentials of a file.
const credentialsFrame = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: credentials}
spec:
  plugin: credentials
  notAfter: 9999-01-01T00:00:00Z
  rules: [{id: none, reason: none, to: {hosts: [none.invalid]}, methods: [GET], paths: ["/"]}]
`

// ParseCredentials reads the sources of a plugin's credentials: a file with the field
// credentials as in a grant, and nothing else. Its lines are read inside of a grant, so that
// they are checked as strictly.
func ParseCredentials(file string, data []byte) (map[string]authz.CredentialSpec, error) {
	if !strings.HasSuffix(file, ".yaml") {
		return nil, fmt.Errorf("%s: sources of credentials are in a file of YAML", file)
	}
	var framed bytes.Buffer
	framed.WriteString(credentialsFrame)
	for line := range bytes.Lines(data) {
		framed.WriteString("  ")
		framed.Write(line)
	}
	object, err := configs.ParseObject[configs.GrantSpec](filepath.Base(file), framed.Bytes())
	if err != nil {
		return nil, fmt.Errorf("%s (its line 1 is line %d here): %w", file, strings.Count(credentialsFrame, "\n")+1, err)
	}
	g := &object.Spec
	if g.Binding != nil || !g.NotBefore.IsZero() || len(g.Limits.Stated()) > 0 || len(g.Sockets) > 0 {
		return nil, fmt.Errorf("%s: it has fields beside credentials; remove them", file)
	}
	out := map[string]authz.CredentialSpec{}
	for _, c := range g.Credentials {
		if o := c.Inject.OAuth2; o != nil && o.CAFile != "" {
			if err := grantcheck.CheckAuthorityFile(o.CAFile); err != nil {
				return nil, fmt.Errorf("%s: credential %s: inject.oauth2.caFile: %w", file, c.Name, err)
			}
		}
		out[c.Name] = c
	}
	return out, nil
}
