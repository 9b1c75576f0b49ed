-- The keywords, functions and relations of a server, as the generator of tables_generated.go reads them.
SELECT 'keyword', word, catcode::text FROM pg_get_keywords()
UNION ALL
SELECT 'function', proname, string_agg(DISTINCT CASE
    WHEN provolatile = 'v' THEN 'volatile'
    WHEN EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) a WHERE a.grantee = 0) IS NOT TRUE THEN 'restricted'
    WHEN 'internal'::regtype = ANY (proargtypes) THEN 'internal'
    WHEN prorettype IN ('trigger'::regtype, 'event_trigger'::regtype, 'language_handler'::regtype, 'fdw_handler'::regtype,
        'index_am_handler'::regtype, 'table_am_handler'::regtype, 'tsm_handler'::regtype, 'internal'::regtype) THEN 'handler'
    ELSE 'plain' END, ',')
FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace GROUP BY proname
UNION ALL
SELECT 'relation', relnamespace::regnamespace || '.' || relname,
    CASE WHEN EXISTS (SELECT FROM aclexplode(coalesce(relacl, acldefault('r', relowner))) a WHERE a.grantee = 0 AND a.privilege_type = 'SELECT') THEN 'public' ELSE 'restricted' END
FROM pg_class WHERE relkind IN ('r', 'v') AND relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
ORDER BY 1, 2
