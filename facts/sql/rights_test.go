package sql

import (
	"fmt"
	"strings"
	"testing"
)

func TestRightsOf(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{`GRANT SELECT ON public.orders TO "{{name}}"`, "select:public.orders"},
		{`GRANT SELECT (id, amount), INSERT ON TABLE orders, "Sales"."Q" TO x`, "select:public.orders insert:public.orders select:Sales.Q insert:Sales.Q"},
		{`GRANT SELECT ON ALL TABLES IN SCHEMA public, sales TO x`, "select:public.* select:sales.*"},
		{`GRANT ALL ON public.orders TO x`, "select:public.orders insert:public.orders update:public.orders delete:public.orders truncate:public.orders references:public.orders trigger:public.orders maintain:public.orders"},
		{`grant all privileges on orders to x; grant usage on schema public to x`, "select:public.orders insert:public.orders update:public.orders delete:public.orders truncate:public.orders references:public.orders trigger:public.orders maintain:public.orders"},
		{`CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; GRANT pg_read_all_data TO "{{name}}"`, "select:*"},
		{`CREATE ROLE x LOGIN SUPERUSER CREATEDB IN ROLE admin, pg_write_all_data; ALTER ROLE x SET search_path = public`, "insert:* update:* delete:* [SUPERUSER, CREATEDB, member of admin]"},
		{`ALTER USER x WITH REPLICATION`, "[REPLICATION]"},
		{`CREATE ROLE x NOSUPERUSER NOINHERIT ROLE superuser`, ""},
		{`CREATE ROLE "superuser" LOGIN`, ""},
		{`GRANT app_rw TO "{{name}}" WITH ADMIN OPTION`, "[member of app_rw]"},
		{`GRANT CREATE, USAGE ON SCHEMA public TO x; GRANT CONNECT ON DATABASE shop TO x; GRANT ALL ON DATABASE shop TO x`, "[CREATE on schema public, CREATE on database shop]"},
		{`GRANT EXECUTE ON FUNCTION f(int) TO x; GRANT USAGE ON SEQUENCE s TO x; GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO x`, ""},
		{`ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT INSERT ON TABLES TO x`, "unread 1"},
		{`DO $$BEGIN EXECUTE 'GRANT INSERT ON orders TO x'; END$$; GRANT SELECT ON orders TO x`, "select:public.orders unread 1"},
		{`GRANT INSERT ON 'orders' TO x`, "unread 1"},
		{`GRANT FROBNICATE ON orders TO x`, "unread 1"},
		{`GRANT`, "unread 1"},
		{`GRANT SELECT ON`, "unread 1"},
		{`GRANT SELECT ON "open`, "unread 1"},
		{`-- GRANT INSERT ON orders TO x`, ""},
		{``, ""},
	} {
		rights := RightsOf(test.text)
		var got []string
		for _, r := range rights.Tables {
			got = append(got, r.Privilege+":"+r.Table)
		}
		if len(rights.Powers) > 0 {
			got = append(got, "["+strings.Join(rights.Powers, ", ")+"]")
		}
		if rights.Unread > 0 {
			got = append(got, fmt.Sprintf("unread %d", rights.Unread))
		}
		if text := strings.Join(got, " "); text != test.want {
			t.Errorf("%s:\n\tgot  %s\n\twant %s", test.text, text, test.want)
		}
	}
}

func FuzzRightsOf(f *testing.F) {
	f.Add(`GRANT SELECT (id), INSERT ON TABLE a, "b"."c" TO x; CREATE ROLE x IN ROLE a, b`)
	f.Add("GRANT ( ON . TO ,")
	f.Fuzz(func(t *testing.T, text string) {
		rights := RightsOf(text, text)
		if again := RightsOf(text); len(rights.Tables) != len(again.Tables) || len(rights.Powers) != len(again.Powers) {
			t.Errorf("a text that is read twice gives other rights: %+v, %+v", rights, again)
		}
	})
}
