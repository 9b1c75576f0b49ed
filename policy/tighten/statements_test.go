package tighten_test

import (
	"strings"
	"testing"
)

const statements = `# The grant of weather.
apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: 2027-06-01T00:00:00Z
  rules:
  - id: read
    reason: a test
    to: {scheme: postgres, hosts: [db.example]}
    databases: [shop, hr] # two
    statements:
      verbs: [select, insert]
      tables:
      - public.orders
      - "public.pay*" # payments
      functions: [safe]
    credential: db
  credentials:
  - {name: db, vault: {path: database/creds/shop}, inject: {database: {}}}
`

const keys = `# The grant of weather.
apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: 2027-06-01T00:00:00Z
  rules:
  - id: read
    reason: a test
    to: {scheme: redis, hosts: [cache.example]}
    databases: [0]
    commands: [get, set, del]
    keys: ["app:*", "app:user:*", other]
    channels: [news]
    credential: cache
  credentials:
  - {name: cache, vault: {path: database/creds/cache}, inject: {database: {}}}
`

// TestPlanStatements: what no statement has used is removed from its list.
func TestPlanStatements(t *testing.T) {
	for name, test := range map[string]struct {
		grant string
		used  []string
		want  string
	}{
		"statements": {statements, []string{"postgres://db.example/shop", "postgres://db.example/shop SELECT lower(a) FROM orders"}, `
-    databases: [shop, hr] # two
+    databases: [shop] # two
-      verbs: [select, insert]
+      verbs: [select]
-      - "public.pay*" # payments`},
		"no tables at all": {statements, []string{"postgres://db.example/shop SELECT 1", "postgres://db.example/hr INSERT INTO public.pay1 VALUES (1)"}, `
-      - public.orders
-      functions: [safe]
+      functions: []`},
		"commands and keys": {keys, []string{"redis://cache.example/0 GET app:user:1", "redis://cache.example/0 SET other 1"}, `
-    commands: [get, set, del]
-    keys: ["app:*", "app:user:*", other]
-    channels: [news]
+    commands: [get, set]
+    keys: ["app:user:*", other]
+    channels: []`},
	} {
		t.Run(name, func(t *testing.T) {
			file, log := write(t, test.grant, test.used...)
			result := plan(t, noon, file, log)
			if got, want := diffOf(result), strings.TrimPrefix(test.want, "\n"); got != want || len(result.Left) > 0 {
				t.Errorf("got\n%s\nwant\n%s\nleft %q", got, want, result.Left)
			}
			if result.Replayed != len(test.used) || result.NotReplayable > 0 {
				t.Errorf("%d accesses were replayed, and %d not; want %d", result.Replayed, result.NotReplayable, len(test.used))
			}
		})
	}
}
