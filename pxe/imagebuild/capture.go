package imagebuild

// Capture is the recipe of the environment that copies a machine's local disk: the agent alone, with drivers
// for disks and their controllers, and for network cards. It has no file system drivers: nothing is mounted.
func Capture(k Kernel, agent string) Recipe {
	return Recipe{Kernel: k, Root: "/", Agent: agent, Role: []string{"capture"},
		Always:   []string{"sd_mod"},
		Hardware: append(networkCards(), diskControllers()...)}
}

// diskControllers are the drivers of what servers and virtual machines have. A kernel of the cloud flavour
// has but a few of them.
func diskControllers() []string {
	return []string{"virtio_pci", "virtio_blk", "virtio_scsi", "nvme", "ahci", "ata_piix", "vmw_pvscsi", "hv_storvsc", "xen_blkfront",
		"megaraid_sas", "mpt3sas", "mptsas", "mptspi", "hpsa", "smartpqi", "aacraid", "isci", "mvsas", "ciss", "3w_9xxx", "arcmsr"}
}
