# STAND-IN for the functions of install.sh
