package manifest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// importOpenAPI reads the description of an API that the plugin uses (OpenAPI 3.0 and 3.1): its servers, the paths with
// their methods, and the names of its security schemes.
func importOpenAPI(d *Draft, root *node) error {
	version := root.get("openapi").text
	if !strings.HasPrefix(version, "3.0.") && !strings.HasPrefix(version, "3.1.") {
		if root.get("swagger").exists() {
			return errors.New("is Swagger 2.0; convert it to OpenAPI 3.0")
		}
		return fmt.Errorf("has openapi: %s; versions 3.0 and 3.1 are read", quote(version))
	}
	o := &openAPI{d: d, root: root, groups: map[string]*apiGroup{}, noted: map[string]bool{}, reached: map[*node][]endpoint{}, credentials: map[*node]string{}}
	if title := root.get("info", "title").str(); name(title) != "" {
		d.Name = name(title + " client")
	}
	for _, p := range root.get("paths").fields {
		o.path(p.name, p.value)
	}
	if n := root.get("webhooks"); n.exists() {
		d.todo(n, "are requests to the plugin; state where it listens in process.listen of the Sidecar")
	}
	o.permissions()
	if len(d.Spec.Permissions) == 0 && len(d.Todos) == 0 {
		return errors.New("has no paths")
	}
	return nil
}

// openAPI is one reading of a description.
type openAPI struct {
	d      *Draft
	root   *node
	groups map[string]*apiGroup
	order  []string
	noted  map[string]bool // todos that stand once for all operations

	// Parts that operations have in common are read once, so that the time does not grow with the
	// product of both.
	reached     map[*node][]endpoint // by a list of servers
	credentials map[*node]string     // by a list of security requirements
}

// apiGroup are operations of one server with one credential and the same methods.
type apiGroup struct {
	e          endpoint
	credential string
	methods    []string
	paths      []string
	has        map[string]bool // paths
}

// once notes something that many operations share.
func (o *openAPI) once(n *node, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if !o.noted[message] {
		o.noted[message] = true
		o.d.todo(n, "%s", message)
	}
}

// path takes the operations of one path.
func (o *openAPI) path(template string, item *node) {
	if ref := item.get("$ref"); ref.exists() {
		if item = o.resolve(ref.str()); item == nil {
			o.d.todo(ref, "%s is not a part of this file; write the permission", quote(ref.str()))
			return
		}
	}
	type key struct{ server, credential string }
	methods := map[key][]string{}
	endpoints := map[key]endpoint{}
	var order []key
	for _, op := range item.fields {
		method := strings.ToUpper(op.name)
		if !slices.Contains([]string{"GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"}, method) || op.value.kind != mapKind {
			continue
		}
		if method == "TRACE" {
			o.d.todo(op.value, "TRACE echoes the request with its credential, and cannot be granted")
			continue
		}
		credential := o.credential(op.value)
		for _, e := range o.servers(item, op.value) {
			k := key{serverText(e), credential}
			if _, ok := endpoints[k]; !ok {
				endpoints[k], order = e, append(order, k)
			}
			methods[k] = append(methods[k], method)
		}
	}
	for _, k := range order {
		o.add(template, item, endpoints[k], k.credential, methods[k])
	}
}

// add puts a path into its group.
func (o *openAPI) add(template string, item *node, e endpoint, credential string, methods []string) {
	slices.Sort(methods)
	methods = slices.Compact(methods)
	pattern, ok := templatePath(strings.TrimRight(e.path, "/") + template)
	if !ok {
		o.d.todo(item, "the path %s has a template within a segment, which no pattern states without being wider; write its literal paths, or * for the segment", quote(template))
		return
	}
	rule := authz.Rule{To: e.to, Methods: methods, Paths: []string{pattern}}
	if why := refused(rule); why != "" {
		o.d.todo(item, "%s", why)
		return
	}
	id := strings.Join([]string{serverText(e), credential, strings.Join(methods, ",")}, " ")
	g := o.groups[id]
	if g == nil {
		g = &apiGroup{e: e, credential: credential, methods: methods, has: map[string]bool{}}
		o.groups[id], o.order = g, append(o.order, id)
	}
	if !g.has[pattern] {
		g.has[pattern] = true
		g.paths = append(g.paths, pattern)
	}
}

func serverText(e endpoint) string {
	return fmt.Sprint(e.to.Scheme, " ", e.to.Hosts, " ", e.to.Ports, " ", e.path)
}

// permissions adds a permission for each group.
func (o *openAPI) permissions() {
	for _, id := range o.order {
		g := o.groups[id]
		slices.Sort(g.paths)
		rule := authz.Rule{To: g.e.to, Methods: g.methods, Paths: g.paths, Credential: g.credential}
		if g.credential != "" && g.e.to.Scheme == authz.SchemeHTTP {
			rule.Credential = ""
			o.once(o.root.get("servers"), "credential %s would be sent to %s without TLS; ask the server for https", g.credential, quote(g.e.to.Hosts[0]))
		}
		o.d.permit(g.e.label()+"-"+strings.ToLower(strings.Join(g.methods, "-")), rule)
	}
}

// servers returns the endpoints of an operation: its own, those of the path, or those of the API.
func (o *openAPI) servers(item, op *node) (out []endpoint) {
	list := op.get("servers")
	for _, next := range []*node{item.get("servers"), o.root.get("servers")} {
		if len(list.items) == 0 {
			list = next
		}
	}
	if len(list.items) == 0 {
		o.once(o.root, "states no servers; write the hosts of the API")
		return nil
	}
	if known, ok := o.reached[list]; ok {
		return known
	}
	const most = 16
	if len(list.items) > most {
		o.once(list, "has more than %d servers; write the hosts that the plugin uses", most)
	}
	for _, s := range list.items[:min(most, len(list.items))] {
		n := s.get("url")
		address, ok := o.expand(s)
		switch {
		case !ok:
			o.once(n, "is longer than %d bytes with its variables; write the host", maxAddress)
			continue
		case strings.HasPrefix(address, "/") || address == "" || strings.HasPrefix(address, "."):
			o.once(n, "%s is relative to where the description is served; write the host", quote(address))
			continue
		}
		e, err := parseEndpoint(address)
		if err != nil {
			o.once(n, "%s %v", quote(address), err)
			continue
		}
		out = append(out, e)
	}
	o.reached[list] = out
	return out
}

// maxShown bounds the names that one text lists.
const maxShown = 8

// maxAddress bounds the address of a server, in bytes.
const maxAddress = 2048

// expand returns the address of a server with the defaults of its variables. One that is too
// long is refused before it is made: each variable may repeat others several times.
func (o *openAPI) expand(s *node) (string, bool) {
	address, n := s.get("url").str(), s.get("url")
	for _, v := range s.get("variables").fields {
		if len(address) > maxAddress {
			return "", false
		}
		place, value := "{"+v.name+"}", v.value.get("default")
		uses := strings.Count(address, place)
		if uses == 0 || value.str() == "" {
			continue
		}
		if len(address)+uses*len(value.str()) > maxAddress {
			return "", false
		}
		address = strings.ReplaceAll(address, place, value.str())
		if len(v.value.get("enum").items) != 1 {
			o.once(n, "the variable %s has other values than its default %s; add the hosts or paths that the plugin uses", quote(v.name), quote(value.str()))
		}
	}
	return address, len(address) <= maxAddress
}

// credential returns the name of the credential of an operation, "" without one.
func (o *openAPI) credential(op *node) string {
	list := op.get("security")
	if !list.exists() {
		list = o.root.get("security")
	}
	if len(list.items) == 0 {
		return ""
	}
	known, ok := o.credentials[list]
	if !ok {
		known = o.requirement(list)
		o.credentials[list] = known
	}
	return known
}

// requirement returns the credential of a list of alternatives; "" for none.
func (o *openAPI) requirement(list *node) string {
	var first *node
	for _, alternative := range list.items {
		if len(alternative.fields) == 0 {
			return "" // it may be asked without one
		}
		if first == nil {
			first = alternative
		}
	}
	switch {
	case first == nil:
		return ""
	case len(first.fields) > 1:
		var names []string
		for _, f := range first.fields[:min(maxShown, len(first.fields))] {
			names = append(names, quote(f.name))
		}
		o.once(first, "%s are required together; a permission has one credential, so that none is asked for", strings.Join(names, " and "))
		return ""
	case len(list.items) > 1:
		o.once(list, "has %d alternatives; the first, %s, is asked for", len(list.items), quote(first.fields[0].name))
	}
	return o.scheme(first, first.fields[0].name)
}

// scheme returns the credential of a security scheme.
func (o *openAPI) scheme(at *node, id string) string {
	s := o.root.get("components", "securitySchemes", id)
	if ref := s.get("$ref"); ref.exists() {
		if s = o.resolve(ref.str()); s == nil {
			s = &node{}
		}
	}
	var kind configs.CredentialKind
	switch s.get("type").str() {
	case "apiKey":
		kind = map[string]configs.CredentialKind{"header": configs.CredentialHeader, "query": configs.CredentialQuery, "cookie": configs.CredentialCookie}[s.get("in").str()]
	case "http":
		kind = map[string]configs.CredentialKind{"bearer": configs.CredentialBearer, "basic": configs.CredentialBasic}[strings.ToLower(s.get("scheme").str())]
	case "oauth2", "openIdConnect":
		kind = configs.CredentialOAuth2
	case "mutualTLS":
		kind = configs.CredentialMTLS
	}
	if kind == "" {
		o.once(at, "the security scheme %s is not one that can be injected; no credential is asked for", quote(id))
		return ""
	}
	return o.d.credential(id, kind, s.get("description").str())
}

// resolve returns what a reference within the file points to, nil for any other.
func (o *openAPI) resolve(ref string) *node {
	path, ok := strings.CutPrefix(ref, "#/")
	if !ok || len(ref) > maxAddress {
		return nil
	}
	n := o.root
	for part := range strings.SplitSeq(path, "/") {
		n = n.get(strings.NewReplacer("~1", "/", "~0", "~").Replace(part))
	}
	if n.kind != mapKind || n.get("$ref").exists() {
		return nil
	}
	return n
}
