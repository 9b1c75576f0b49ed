package sql

// nameClass is a set of names, as patterns of path.Match, with the reason for it.
type nameClass struct {
	why   string
	names []string
}

// excludedFunctions are not volatile and may be executed by everybody, and are not safe.
var excludedFunctions = []nameClass{
	{"write what any table, schema or query holds as XML: they read data that no fact names", []string{"*_to_xml*", "*xmlschema"}},
	{"read settings, which hold what applications keep in them, as for row security", []string{
		"current_setting", "pg_show_all_settings", "pg_settings_get_flags",
	}},
	{"show what other sessions do, or keep counts of tables that no fact names", []string{
		"pg_stat_get_*", "pg_cursor", "pg_prepared_statement", "pg_listening_channels", "pg_get_replication_slots",
		"pg_get_publication_tables",
	}},
	{"read the server's files or show where they are", []string{
		"pg_available_extension*", "pg_extension_update_paths", "pg_relation_filepath", "pg_tablespace_location",
		"pg_timezone_names", "pg_walfile_name*",
	}},
	{"are called by the server: validators, and what event triggers ask", []string{"*_validator", "pg_event_trigger_*"}},
	{"make a value of any type by its number, and run what the checks of a domain call", []string{
		"array_in", "domain_in", "multirange_in", "range_in", "record_in",
	}},
	{"assign a number to the transaction, which is a write", []string{"txid_current", "pg_current_xact_id"}},
	{"show samples of a table's values", []string{"pg_mcv_list_items"}},
}

// includedFunctions are volatile and safe.
var includedFunctions = []nameClass{
	{"differ at each call, and read nothing", []string{"random", "clock_timestamp", "timeofday", "gen_random_uuid"}},
	{"drivers ask whether the server is a primary", []string{"pg_is_in_recovery"}},
	{"connection pools release their own session's locks", []string{"pg_advisory_unlock_all"}},
	{"describe the structure and size of relations, as psql shows them", []string{
		"pg_indexes_size", "pg_partition_ancestors", "pg_partition_tree", "pg_relation_size", "pg_table_size", "pg_total_relation_size",
	}},
	{"are the methods of TABLESAMPLE; a call of their own takes an internal argument, and fails", []string{"bernoulli", "system"}},
}

// excludedRelations may be read by everybody, and hold more than types and structure.
var excludedRelations = []nameClass{
	{"accounts: roles, their members and settings, and what they may do", []string{
		"pg_catalog.pg_auth*", "pg_catalog.pg_group", "pg_catalog.pg_roles", "pg_catalog.pg_shadow", "pg_catalog.pg_user",
		"pg_catalog.pg_db_role_setting", "information_schema.*role*",
	}},
	{"samples of the values of columns", []string{"pg_catalog.pg_stats*", "pg_catalog.pg_statistic", "pg_catalog.pg_statistic_ext_data"}},
	{"activity: sessions with their statements, counts, locks, cursors, replication", []string{
		"pg_catalog.pg_stat_*", "pg_catalog.pg_statio_*", "pg_catalog.pg_locks", "pg_catalog.pg_cursors", "pg_catalog.pg_prepared_*",
		"pg_catalog.pg_replication_*", "pg_catalog.pg_subscription*",
	}},
	{"other servers: addresses, and users and passwords at them", []string{
		"pg_catalog.pg_foreign_*", "pg_catalog.pg_user_mapping*", "information_schema.foreign_*", "information_schema.user_mapping*",
		"information_schema.column_options",
	}},
	{"data: large objects, and the last values of sequences", []string{"pg_catalog.pg_largeobject*", "pg_catalog.pg_sequences"}},
	{"configuration of the server", []string{
		"pg_catalog.pg_settings", "pg_catalog.pg_parameter_acl", "pg_catalog.pg_available_extension*",
	}},
	{"labels of security modules", []string{"pg_catalog.pg_seclabel*", "pg_catalog.pg_shseclabel"}},
	{"newer than PostgreSQL 13", newRelations[0].names},
}

// newRelations are newer than PostgreSQL 13, where such a name without a schema could be
// that of a user's table.
var newRelations = []nameClass{{"PostgreSQL 14 or 15 has them first", []string{
	"pg_catalog.pg_backend_memory_contexts", "pg_catalog.pg_stats_ext_exprs", "pg_catalog.pg_stat_progress_copy",
	"pg_catalog.pg_stat_replication_slots", "pg_catalog.pg_stat_wal", "pg_catalog.pg_parameter_acl", "pg_catalog.pg_publication_namespace",
	"pg_catalog.pg_ident_file_mappings", "pg_catalog.pg_stat_recovery_prefetch", "pg_catalog.pg_stat_subscription_stats",
	"information_schema.routine_*_usage",
}}}
