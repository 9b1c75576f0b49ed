package postgres

import (
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/sql"
)

func unknownNameFact() authz.Fact { return sql.UnknownName() }
