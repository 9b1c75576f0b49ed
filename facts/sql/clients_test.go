package sql

import (
	"bufio"
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
)

// TestClientsStatements reads what real clients send. A grant of what their steps do, of
// the catalog and of safe functions covers it, but for the names below.
func TestClientsStatements(t *testing.T) {
	granted := map[authz.FactKind][]string{
		authz.FactVerb: append(PassingVerbs(), "select", "insert", "update", "delete", "copy-in", "copy-out", "lock", "listen"),
		authz.FactTable: {
			"catalog", "public.orders", "public.notes",
			"pg_catalog.pg_roles", "pg_catalog.pg_publication_namespace", // psql \d
			"pg_catalog.pg_foreign_table", "pg_catalog.pg_foreign_data_wrapper", "pg_catalog.pg_foreign_server", // pg_dump
			"pg_catalog.pg_subscription", "pg_catalog.pg_seclabels", "pg_catalog.pg_shseclabel", "pg_catalog.pg_db_role_setting",
		},
		authz.FactFunction: {"safe", "pg_catalog.pg_sleep", "information_schema._pg_expandarray"},
		authz.FactSetting:  append(PassingSettings(), WritingSettings()...),
	}
	file, err := os.Open("testdata/clients.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var sent struct{ Client, Text string }
		if err := json.Unmarshal(lines.Bytes(), &sent); err != nil {
			t.Fatal(err)
		}
		reading := Read(sent.Text)
		if reading.Unreadable != "" {
			t.Errorf("%s: %s: %s", sent.Client, reading.Unreadable, sent.Text)
		}
		for _, statement := range reading.Statements {
			for _, fact := range statement.Facts {
				if !slices.Contains(granted[fact.Kind], fact.Name) && fact.Name != "public.secrets" {
					t.Errorf("%s: %v of %s", sent.Client, fact, sent.Text)
				}
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
}
