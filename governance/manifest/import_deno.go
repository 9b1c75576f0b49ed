package manifest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

func authzRule(e endpoint) authz.Rule { return authz.Rule{To: e.to} }

// importDeno reads the configuration of Deno (docs.deno.com/runtime/fundamentals/configuration): the set of permissions named
// default, or the only one; and without sets the flags of tasks.
func importDeno(d *Draft, root *node) error {
	d.Name = name(strings.TrimPrefix(root.get("name").str(), "@"))
	d.describe(root.get("version"), &node{})
	sets := root.get("permissions")
	if sets.kind == mapKind && len(sets.fields) > 0 {
		chosen := sets.fields[0]
		for _, f := range sets.fields {
			if f.name == "default" {
				chosen = f
			}
		}
		for _, f := range sets.fields {
			if f.name != chosen.name {
				d.todo(f.value, "the set %s is not imported beside %s; add its permissions if the plugin runs with it", quote(f.name), quote(chosen.name))
			}
		}
		denoSet(d, chosen.value)
		return nil
	}
	return denoTasks(d, root.get("tasks"))
}

// denoSet imports one set of permissions.
func denoSet(d *Draft, set *node) {
	if set.get("all").isTrue() || set.isTrue() {
		d.todo(set, "allows everything; name the hosts that the plugin accesses")
	}
	for _, f := range set.fields {
		allow, deny := f.value, &node{}
		if f.value.kind == mapKind {
			allow, deny = f.value.get("allow"), f.value.get("deny")
		}
		if f.name == "net" {
			denoNet(d, allow, deny)
			continue
		}
		if allow.isTrue() || len(allow.items) > 0 || allow.str() != "" {
			d.todo(f.value, "the permission %s is not for the network; it is confined by the Sidecar, and a manifest does not state it", quote(f.name))
		}
		for _, v := range allow.items {
			if f.name == "env" && looksSecret(v.str()) {
				d.todo(v, "%s may hold a secret; name a credential, which is injected into requests and which the plugin never sees", quote(v.str()))
			}
		}
	}
}

// looksSecret reports whether a variable's name is one of those that hold secrets.
func looksSecret(variable string) bool {
	upper := strings.ToUpper(variable)
	return slices.ContainsFunc([]string{"TOKEN", "SECRET", "PASSWORD", "PASSWD", "API_KEY", "APIKEY", "ACCESS_KEY", "PRIVATE_KEY", "CREDENTIAL"}, func(s string) bool {
		return strings.Contains(upper, s)
	})
}

func denoNet(d *Draft, allow, deny *node) {
	if allow.isTrue() {
		d.todo(allow, "allows every host; name the hosts")
	}
	if deny.isTrue() {
		d.todo(deny, "denies every host, so that nothing is imported")
		return
	}
	var denied []string
	for _, v := range deny.items {
		denied = append(denied, strings.ToLower(v.str()))
	}
	for _, v := range allow.items {
		denoHost(d, v, v.str(), denied)
	}
}

// denoHost adds HOST or HOST:PORT. Deno looks at nothing above TCP.
func denoHost(d *Draft, at *node, text string, denied []string) {
	switch {
	case len(d.Todos) >= maxTodos: // each host leaves something open
		return
	case len(denied) > maxPermissions:
		d.todo(at, "%s is compared with more than %d hosts that are denied; it is not imported", quote(text), maxPermissions)
		return
	}
	e, err := parseEndpoint(text)
	if err != nil || e.path != "" {
		if err == nil {
			err = errors.New("has a path, which Deno does not read")
		}
		d.todo(at, "%s %v", quote(text), err)
		return
	}
	for _, deny := range denied {
		host, err := parseEndpoint(deny)
		if err != nil || slices.Contains(host.to.Hosts, e.to.Hosts[0]) || strings.HasPrefix(deny, "*") && strings.HasSuffix(e.to.Hosts[0], host.label()) {
			d.todo(at, "%s is allowed, and all or a part of it is denied by %s; it is not imported", quote(text), quote(deny))
			return
		}
	}
	id := d.permit(e.label(), authzRule(e))
	d.todo(at, "states no scheme, methods and paths; write those of permission %s", id)
	if !strings.Contains(strings.TrimPrefix(text, "["), ":") {
		d.comment(id, "Deno allows every port of the host; 443 alone is asked for.")
	}
}

// denoTasks imports --allow-net of the tasks.
func denoTasks(d *Draft, tasks *node) error {
	found := false
	for _, f := range tasks.fields {
		command := f.value
		if command.kind == mapKind {
			command = command.get("command")
		}
		var denied []string
		var allowed [][]string
		for word := range strings.FieldsSeq(command.str()) {
			flag, value, _ := strings.Cut(strings.Trim(word, `"'`), "=")
			switch flag {
			case "--deny-net":
				denied = append(denied, splitHosts(strings.ToLower(value))...)
			case "--allow-net", "-N":
				allowed = append(allowed, splitHosts(value))
			case "-A", "--allow-all":
				allowed = append(allowed, nil)
			}
		}
		for _, hosts := range allowed {
			found = true
			if len(hosts) == 0 {
				d.todo(command, "the task %s allows every host; name the hosts", quote(f.name))
			}
			for _, host := range hosts {
				if !slices.ContainsFunc(d.Spec.Permissions, func(p configs.Permission) bool { return p.To.Hosts[0] == host }) {
					denoHost(d, command, host, denied)
				}
			}
		}
	}
	if !found {
		return fmt.Errorf("has neither permissions nor a task with --allow-net")
	}
	return nil
}

func splitHosts(value string) []string {
	return slices.DeleteFunc(strings.Split(value, ","), func(s string) bool { return s == "" })
}
