package main

import (
	"log/slog"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/pid1"
)

func hypervisorCommand(log *slog.Logger) *cobra.Command {
	return &cobra.Command{
		Use:   "hypervisor",
		Short: "Run virtual machines on this machine",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			lease, err := pid1.Network(c.Context(), log)
			if err != nil {
				return err
			}
			log.Info("address", "interface", lease.Interface, "address", lease.Address)
			<-c.Context().Done()
			return nil
		},
	}
}
