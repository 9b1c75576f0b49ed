package vault

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
)

// DatabaseRole is a role of Vault's database engine, of which users are leased (Vault API,
// "Database secrets engine").
type DatabaseRole struct {
	// Creation are the statements that create a user, with names in {{ }} to fill in.
	Creation []string
	// Plugin is what connects to the database, as in postgresql-database-plugin; "" if the
	// policy does not allow to read the connection.
	Plugin string
	// Database is the one that the statements run in; "" if it is not known.
	Database string
}

// DatabaseRolePaths returns the paths of a role of Vault's database engine and of the
// connections of that engine, from the path that its users are leased at. It reports false
// for a path that cannot be one, and for a static role: the rights of its user are not in
// Vault. The engine is looked for by the form of the path alone.
func DatabaseRolePaths(credential string) (role, connections string, ok bool) {
	mount, name, ok := strings.Cut(credential, "/creds/")
	if !ok || mount == "" || name == "" || strings.Contains(name, "/") {
		return "", "", false
	}
	return mount + "/roles/" + name, mount + "/config", true
}

// DatabaseRole reads the role that a credential's path leases users of, if the policy
// allows it. It needs a login, see [Broker.Examine]. denied is true if the policy does not
// allow to read the role. A role of another engine has no creation statements.
func (b *Broker) DatabaseRole(ctx context.Context, ref authz.CredentialRef) (role DatabaseRole, denied bool, err error) {
	path, connections, ok := DatabaseRolePaths(ref.Path)
	s := b.login.current()
	if !ok || !s.usable(b.clock.now()) {
		return role, false, fmt.Errorf("read the role of %s: not logged in, or not a role of a database", ref.Path)
	}
	answer, err := b.client.do(ctx, call{op: "read " + path, method: http.MethodGet, path: path, token: s.token, optional: true})
	if err != nil {
		return role, statusOf(err) == http.StatusForbidden, err
	}
	if answer == nil {
		return role, false, nil
	}
	statements, _ := answer.Data["creation_statements"].([]any)
	for _, statement := range statements {
		if text, ok := statement.(string); ok {
			role.Creation = append(role.Creation, text)
		}
	}
	name, _ := answer.Data["db_name"].(string)
	if path = connections + "/" + name; name == "" || !isPath(path) {
		return role, false, nil
	}
	if connection, _ := b.client.do(ctx, call{op: "read " + path, method: http.MethodGet, path: path, token: s.token, optional: true}); connection != nil {
		role.Plugin, _ = connection.Data["plugin_name"].(string)
		details, _ := connection.Data["connection_details"].(map[string]any)
		address, _ := details["connection_url"].(string)
		role.Database = databaseOf(address)
	}
	return role, false, nil // the role is enough
}

func isPath(path string) bool { return checkPath(path) == nil }

// databaseOf returns the database of a connection string in the form of a URL, with names
// in {{ }} to fill in; "" if it has none.
func databaseOf(address string) string {
	u, err := url.Parse(strings.NewReplacer("{{", "", "}}", "").Replace(address))
	if err != nil || u.Scheme != "postgresql" && u.Scheme != "postgres" {
		return ""
	}
	return strings.TrimPrefix(u.Path, "/")
}
