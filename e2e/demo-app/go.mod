module demo-app

go 1.22
