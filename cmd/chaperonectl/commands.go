package main

import "github.com/spf13/cobra"

// pluginCommand returns the parent of every command that approves plugins.
func (c *cli) pluginCommand() *cobra.Command {
	return group("plugin", "Approve plugins", "Approve plugins. `chaperone plugin` is this command, as found beside chaperone.", c.pluginCommands()...)
}

// pluginCommands lists them, sorted by name.
func (c *cli) pluginCommands() []*cobra.Command {
	return []*cobra.Command{
		c.adoptCommand(),
		c.annotateCommand(),
		c.approveCommand(),
		c.catalogCommand(),
		c.checkCommand(),
		c.complianceCommand(),
		c.dataflowCommand(),
		c.diffCommand(),
		c.evidenceCommand(),
		c.exemptCommand(),
		c.gamedayCommand(),
		c.gamedayPluginCommand(),
		c.importCommand(),
		c.initCommand(),
		c.issueCommand(),
		c.keygenCommand(),
		c.notifyCommand(),
		c.pilotCommand(),
		c.promoteCommand(),
		c.rejectCommand(),
		c.remindCommand(),
		c.renewCommand(),
		c.reportCommand(),
		c.reviewCommand(),
		c.riskCommand(),
		c.rollbackCommand(),
		c.signCommand(),
		c.statusCommand(),
		c.submitCommand(),
		c.trustCommand(),
		c.verifyCommand(),
		c.withdrawCommand(),
	}
}
